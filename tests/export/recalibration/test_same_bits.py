"""The same digits, the same bits: in one process, resumed after a crash, over Dask with a death."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from concurrent import futures
from multiprocessing import get_context
from pathlib import Path

import pytest
from corruptions import DIGITS, fog, load_digits

import cbn
from cbn import export

MODEL = DIGITS / "digits.onnx"
METHODS = pytest.mark.parametrize("method", ["batch", "sequential"])
OPTIONS = {"prior": 0, "batch_size": 10, "num_threads": 1}


@pytest.fixture(scope="module")
def images():
    return fog(load_digits()[0])


def bits(result):
    """All that was measured, and the statistics of the model, as bytes."""
    arrays = [
        array
        for name in result.statistics
        for array in result.statistics[name].to_arrays().values()
    ]
    for norm in export.find_nodes(result.model):
        arrays += [norm.mean.array, norm.var.array]
    return b"".join(array.tobytes() for array in arrays)


def go_on(images, method, path, expected):
    """Start again from a checkpoint, to the same bits; what the progress was told."""
    told = []
    result = export.recalibrate(
        MODEL,
        images,
        method=method,
        checkpoint=path,
        progress=lambda *what: told.append(what),
        **OPTIONS,
    )
    assert bits(result) == expected[method]
    return told


@pytest.fixture(scope="module")
def expected(images):
    return {
        method: bits(export.recalibrate(MODEL, images, method=method, **OPTIONS))
        for method in ("batch", "sequential")
    }


@METHODS
@pytest.mark.parametrize("stop", [1, 20])
def test_interrupted_and_resumed(images, expected, tmp_path, method, stop):
    path = tmp_path / "run.checkpoint"
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.recalibrate(
            MODEL, images, method=method, checkpoint=path, progress=interrupt, **OPTIONS
        )
    assert path.exists()
    told = go_on(images, method, path, expected)
    assert told[0][1] == stop + 1  # it went on
    assert list(tmp_path.iterdir()) == []


@METHODS
def test_interrupted_when_all_is_measured(images, expected, tmp_path, method):
    path = tmp_path / "run.checkpoint"

    def interrupt(stage, *_):
        if stage == "comparing":
            raise KeyboardInterrupt

    options = {**OPTIONS, "method": method, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        export.recalibrate(MODEL, images, progress=interrupt, **options)
    told = []
    result = export.recalibrate(MODEL, images, progress=lambda *what: told.append(what), **options)
    assert bits(result) == expected[method]
    assert [stage for stage, *_ in told] == ["choosing the prior", "comparing"]
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from cbn import export
from corruptions import fog, load_digits
calls = []
def progress(*_):
    calls.append(1)
    if len(calls) == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    import time; time.sleep(0.06)  # the file is written once a second
export.recalibrate(sys.argv[1], fog(load_digits()[0]), method=sys.argv[2], checkpoint=sys.argv[3],
                   progress=progress, prior=0, batch_size=10, num_threads=1)
"""


@METHODS
def test_killed_and_resumed(images, expected, tmp_path, method):
    path = tmp_path / "run.checkpoint"
    folders = [Path(cbn.__file__).parents[1], Path(__file__).parents[2]]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(MODEL), method, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.exists()
    told = go_on(images, method, path, expected)
    assert told[0][1] > 1  # it went on
    assert list(tmp_path.iterdir()) == []


@METHODS
@pytest.mark.parametrize("change", [{"batch_size": 9}, {"seed": 1}, {"held_out": 0.3}])
def test_the_checkpoint_of_another_run_is_refused(images, tmp_path, method, change):
    path = tmp_path / "run.checkpoint"

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.recalibrate(
            MODEL, images, method=method, checkpoint=path, progress=interrupt, **OPTIONS
        )
    before = path.read_bytes()
    with pytest.raises(export.CheckpointError, match="the checkpoint of another run"):
        export.recalibrate(MODEL, images, method=method, checkpoint=path, **{**OPTIONS, **change})
    assert path.read_bytes() == before


def test_the_prior_may_change_on_the_way_where_it_comes_last(images, expected, tmp_path):
    path = tmp_path / "run.checkpoint"
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.recalibrate(
            MODEL, images, checkpoint=path, progress=interrupt, **{**OPTIONS, "prior": 9}
        )
    assert bits(export.recalibrate(MODEL, images, checkpoint=path, **OPTIONS)) == expected["batch"]


def test_over_threads_and_processes(images, expected):
    spawned = futures.ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    for executor in (futures.ThreadPoolExecutor(3), spawned):
        with executor:
            result = export.recalibrate(MODEL, images, executor=executor, **OPTIONS)
        assert bits(result) == expected["batch"]


def test_over_dask_with_a_worker_that_is_killed(images, expected, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(tmp_path),
        silence_logs=logging.CRITICAL,
    )
    killed = []

    def kill(stage, done, total):
        if stage == "measuring" and done == 8:
            worker = next(iter(cluster.workers.values()))
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)

    with cluster, distributed.Client(cluster) as client:
        result = export.recalibrate(MODEL, images, executor=client, progress=kill, **OPTIONS)
    assert killed
    assert bits(result) == expected["batch"]
