"""The number of threads: what decides it, and that it never shows in the result."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import oracles
import pytest

import cbn

SHAPES = {
    "small rows": (17, 5),
    "rows": (3000, 130),
    "wide rows": (70, 5001),
    "small runs": (3, 5, 7),
    "short runs": (64, 96, 7, 7),
    "runs": (8, 64, 28, 28),
    "one channel": (3, 1, 300_007),
    "few channels": (9, 3, 111, 111),
    "few channels, short runs": (3000, 3, 49),
    "streamed": (17, 40, 56, 57),
    "streamed, short runs": (90, 500, 7, 7),
    "five axes": (2, 33, 5, 13, 28),
}


def everything(x: np.ndarray, num_threads: int | None) -> list[np.ndarray]:
    """All that cbn computes from x."""
    channels = x.shape[1]
    mean, var = np.zeros(channels), np.ones(channels)
    weight, bias = oracles.array((channels,)), oracles.array((channels,), seed=1)
    stats = cbn.batch_stats(x, num_threads=num_threads)
    training = cbn.batch_norm(x, mean, var, weight, bias, True, num_threads=num_threads)
    fused = cbn.batch_norm(x, mean, var, weight, bias, num_threads=num_threads)
    return [stats.mean, stats.m2, mean, var, training, fused]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_bits_do_not_depend_on_the_number_of_threads(shape, layout, dtype):
    x = oracles.array(shape, dtype)
    if layout == "last":
        x = oracles.channels_last(x)
    expected = [array.tobytes() for array in everything(x, 1)]
    for num_threads in (2, 3, 4, None):
        assert [array.tobytes() for array in everything(x, num_threads)] == expected


def test_layers_and_fused_layers_take_the_argument():
    x = oracles.array((8, 64, 28, 28))
    results = []
    for num_threads in (1, 3):
        bn = cbn.BatchNorm2d(64, num_threads=num_threads)
        trained = bn(x)
        results.append([trained.tobytes(), bn.eval()(x).tobytes(), bn.fuse()(x).tobytes()])
    assert results[0] == results[1]


def test_calls_from_many_python_threads_do_not_disturb_each_other():
    x = oracles.array((8, 64, 28, 28))
    expected = cbn.batch_norm(x, None, None, training=True)
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(
                lambda _: cbn.batch_norm(x, None, None, training=True, num_threads=2), range(12)
            )
        )
    for result in results:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_count_below_one_is_refused(bad):
    with pytest.raises(ValueError, match=f"num_threads: expected None or an int >= 1, got {bad}"):
        cbn.batch_stats(oracles.array((4, 3)), num_threads=bad)


@pytest.mark.parametrize("bad", [1.5, "2"])
def test_what_is_no_int_is_refused(bad):
    x = oracles.array((4, 3))
    for call in (
        lambda: cbn.batch_norm(x, None, None, training=True, num_threads=bad),
        lambda: cbn.batch_stats(x, num_threads=bad),
        lambda: cbn.BatchNorm1d(3, num_threads=bad),
    ):
        with pytest.raises(TypeError, match="num_threads: expected None or an int, got"):
            call()


def python(code: str, **variables: str) -> str:
    """What a fresh process prints that runs `code` with the same cbn as this one."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = {"PYTHONPATH": str(Path(cbn.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | path | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_omp_num_threads_limits_the_default():
    code = "import cbn; print(cbn.build_info()['threads'])"
    assert python(code, OMP_NUM_THREADS="1") == "1"
    assert python(code, OMP_NUM_THREADS="1,8") == "1"


def test_omp_num_threads_never_adds_processors():
    code = "import cbn; print(cbn.build_info()['threads'])"
    assert int(python(code, OMP_NUM_THREADS="512")) == int(python(code))


@pytest.mark.parametrize("nonsense", ["", "many", "-3", "0"])
def test_an_omp_num_threads_that_is_no_count_leaves_at_least_one(nonsense):
    code = "import cbn; print(cbn.build_info()['threads'])"
    assert int(python(code, OMP_NUM_THREADS=nonsense)) >= 1


def test_affinity_limits_the_default():
    code = (
        "import os, cbn; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]);"
        "print(cbn.build_info()['threads'])"
    )
    assert python(code) == "1"


STARTED = """
import numpy as np, psutil, cbn
x = np.ones({shape}, np.float32)
before = psutil.Process().num_threads()
cbn.batch_norm(x, None, None, training=True, num_threads={num_threads})
print(psutil.Process().num_threads() - before)
"""


@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_int_is_obeyed(num_threads):
    started = int(python(STARTED.format(shape=(64, 64, 49), num_threads=num_threads)))
    assert started == (num_threads - 1 if cbn.build_info()["threaded"] else 0)


def test_no_thread_is_started_for_an_array_of_a_quarter_of_a_megabyte():
    assert python(STARTED.format(shape=(1, 64, 1024), num_threads=None)) == "0"


def test_omp_num_threads_keeps_a_large_array_to_one_thread():
    code = STARTED.format(shape=(64, 64, 1024), num_threads=None)
    assert python(code, OMP_NUM_THREADS="1") == "0"


FORK = """
import os, numpy as np, cbn
x = np.random.default_rng(0).normal(size=(64, 64, 400)).astype(np.float32)
expected = cbn.batch_norm(x, None, None, training=True, num_threads=2)
child = os.fork()
if child == 0:
    for num_threads in (1, 2, 3, None):
        result = cbn.batch_norm(x, None, None, training=True, num_threads=num_threads)
        if not np.array_equal(result, expected):
            os._exit(1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_forked_after_a_parallel_call_makes_threads_of_its_own():
    assert python(FORK) == "0"
