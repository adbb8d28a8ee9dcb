"""examples/sync_batch_norm.py: one batch over several processes, forward and backward."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cbn

EXAMPLE = Path(__file__).parents[2] / "examples" / "sync_batch_norm.py"


def run(*command: str) -> list[str]:
    """The lines that a command prints, run with the same cbn as this process."""
    path = os.pathsep.join([str(Path(cbn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # containers
    done = subprocess.run(
        command,
        env=os.environ | root | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def assert_equal_over_two(lines: list[str]) -> None:
    assert lines[0] == "14 images over 2 processes (5, 9)"
    names = [line.split()[0] for line in lines[1:-1]]
    assert names == ["y", "dweight", "dbias", "dx", "running_mean", "running_var"]
    assert lines[-1] == "equal to a single process"


def test_two_processes_of_multiprocessing_equal_one():
    assert_equal_over_two(run(sys.executable, str(EXAMPLE)))


@pytest.mark.skipif(
    shutil.which("mpiexec") is None or importlib.util.find_spec("mpi4py") is None,
    reason="MPI or mpi4py is not installed",
)
def test_two_processes_of_mpi_equal_one():
    assert_equal_over_two(run("mpiexec", "-n", "2", sys.executable, str(EXAMPLE)))


def test_statistics_that_are_not_shared_show():
    spec = importlib.util.spec_from_file_location("sync_batch_norm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.check(0, 1, lambda array: [array])
    assert not example.check(0, 2, lambda array: [array])
