"""Batches on other threads, processes and a Dask cluster: the same results in the same order."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from cbn.export.recalibration.measure.executors import connect, map_in_order

WORK = '''
import os, time
import numpy as np
import cbn


class Measure:
    """Statistics of a batch; the process that ran it; how often it was unpickled there."""

    unpickled = 0

    def __init__(self, seconds=0.0, weight=b""):
        self.seconds, self.weight = seconds, weight

    def __call__(self, feeds, first):
        time.sleep(self.seconds * (1 + first % 3))
        if first == -1:
            raise ValueError("no such batch")
        return os.getpid(), Measure.unpickled, cbn.batch_stats(feeds["x"]).to_array()

    def __setstate__(self, state):
        Measure.unpickled += 1
        self.__dict__ |= state
'''


@pytest.fixture
def measure(tmp_path, monkeypatch):
    (tmp_path / "measured_elsewhere.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("measured_elsewhere").Measure
    del sys.modules["measured_elsewhere"]


def batches(number=12):
    for index in range(number):
        x = np.random.default_rng(index).normal(index, 1, (6, 3, 5)).astype(np.float32)
        yield {"x": x}, index


def total(results):
    """Merge as a caller does: the order decides the bits."""
    return np.sum([stats for *_, stats in results], axis=0)


@pytest.fixture
def processes(measure):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_threads_and_here_give_results_in_order(measure):
    here = list(map_in_order(measure(), batches()))
    with ThreadPoolExecutor(3) as pool:
        there = list(map_in_order(measure(0.002), batches(), pool))
    assert [stats.tobytes() for *_, stats in there] == [stats.tobytes() for *_, stats in here]


def test_processes_give_the_same_bits_and_unpickle_once(measure, processes):
    here = total(map_in_order(measure(), batches()))
    there = list(map_in_order(measure(0.005), batches(), processes))
    assert total(there).tobytes() == here.tobytes()
    assert os.getpid() not in {pid for pid, *_ in there}
    assert {unpickled for _, unpickled, _ in there} == {1}


@pytest.mark.parametrize(("in_flight", "ahead"), [(1, 1), (3, 3), (None, 4)])
def test_no_more_is_read_ahead_than_may_be_in_flight(in_flight, ahead):
    read = []

    def endless():
        for index in itertools.count():
            read.append(index)
            yield (index,)

    with ThreadPoolExecutor(2) as pool:
        results = map_in_order(lambda index: index, endless(), pool, in_flight=in_flight)
        for given in range(9):
            assert next(results) == given
            assert len(read) <= given + ahead
        results.close()


def test_an_error_comes_out_and_cancels_the_rest(measure):
    gate = threading.Event()
    started = []

    def work(index):
        started.append(index)
        if index == 0:
            raise ValueError("no such batch")
        gate.wait(10)

    with ThreadPoolExecutor(1) as pool:
        results = map_in_order(work, ((index,) for index in range(9)), pool, in_flight=5)
        with pytest.raises(ValueError, match="no such batch"):
            next(results)
        gate.set()
    assert len(started) <= 2


def test_what_is_no_executor_is_refused():
    with pytest.raises(TypeError, match=r"expected executor as None, .*got int"):
        list(map_in_order(print, [], 4))


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r'pip install "cbn\[dask\]"'):
        list(map_in_order(print, [], "tcp://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("tcp://127.0.0.1:1", ConnectionError, "no Dask scheduler answers at 'tcp://127.0.0.1:1'"),
        ("no such://place", ValueError, "'no such://place' is no address of a scheduler"),
    ],
)
def test_an_address_where_no_scheduler_is_is_named(address, error, message):
    dask = pytest.importorskip("dask", reason="needs the extra [dask]")
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "300ms"}),
        pytest.raises(error, match=message),
    ):
        list(map_in_order(print, [], address))


@pytest.fixture
def cluster(measure):
    distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as local:
        yield local


def test_dask_with_a_worker_that_is_killed_gives_the_same_bits(measure, cluster):
    here = total(map_in_order(measure(), batches(24)))
    heavy = measure(0.02, weight=bytes(12_000_000))  # more than Dask likes within a task
    found = []
    with contextlib.closing(map_in_order(heavy, batches(24), cluster.scheduler_address)) as results:
        for result in results:
            found.append(result)
            if len(found) == 8:
                victim = result[0]
                os.kill(victim, signal.SIGKILL)
    assert total(found).tobytes() == here.tobytes()
    assert victim not in {pid for pid, *_ in found[16:]}
    assert {unpickled for _, unpickled, _ in found} == {1}
    bad = [({"x": np.zeros((1, 3))}, -1)]
    with connect(cluster.scheduler_address) as client, pytest.raises(ValueError, match="no such"):
        list(map_in_order(measure(), bad, client))
