"""How the tests run the command line: in this process, and as a person would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import cbn
from cbn.cli import app


class Shown(NamedTuple):
    """What a process left behind, under the names that ``invoke`` has for it."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def invoke() -> Callable[..., Any]:
    """Run a command in this process: ``invoke("check", path)`` has exit_code, stdout, stderr."""
    runner = CliRunner()

    def run(*arguments: object) -> Any:
        return runner.invoke(app, [str(argument) for argument in arguments], prog_name="cbn")

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment for a process that imports the same cbn as these tests."""
    return {**os.environ, "PYTHONPATH": str(Path(cbn.__file__).parents[1])}


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Shown]:
    """Run ``python -m cbn`` as a process of its own, in a folder that is empty."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments: object) -> Shown:
        done = subprocess.run(
            [sys.executable, "-m", "cbn", *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Shown(done.returncode, done.stdout, done.stderr)

    return run
