"""Large arrays, whose stores go past the cache, or whose channels are taken some at a time; and
long runs, which are taken piece by piece, or rows of short ones."""

from __future__ import annotations

import builds
import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn

DTYPES = [np.dtype(dtype) for dtype in ("float16", ml_dtypes.bfloat16, "float32", "float64")]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
STREAMED = 9 << 20  # bytes of x; from 8 MiB on
WINDOW = 16 << 20  # bytes of x, or of x and dy: more of few channels are taken some at a time


def values(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    return np.resize(oracles.array((10_007,), np.float32, seed).astype(dtype), shape)


@each_dtype
@pytest.mark.parametrize("beside", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_streamed_call_gives_the_bits_of_small_ones(activation, beside, dtype):
    runs = STREAMED // (7 * 1001 * dtype.itemsize)  # each ends within a group
    x, residual = (values((runs, 7, 1001), dtype, seed) for seed in (3, 4))
    coefficients = (oracles.array((7,), seed=seed) for seed in range(3))
    f = cbn.ScaleShift(*coefficients, activation=activation, dtype=dtype)
    y = f(x, residual=residual if beside else None)
    for k in range(0, runs, 20):
        some = slice(k, k + 20)
        expected = f(x[some], residual=residual[some] if beside else None)
        np.testing.assert_array_equal(y[some], expected)


@each_dtype
@pytest.mark.parametrize("over", ["x", "dy"])
def test_a_gradient_in_place_gives_the_bits_of_another_output(over, dtype):
    shape = (STREAMED // (40 * 3136 * dtype.itemsize) + 1, 40, 3136)
    x, dy = (values(shape, dtype, seed) for seed in (3, 4))
    mean, rstd = oracles.array((40,)), np.full(40, 0.7)
    expected = cbn.batch_norm_backward(dy, x, None, mean, rstd)[0]
    out = {"x": x, "dy": dy}[over]
    assert cbn.batch_norm_backward(dy, x, None, mean, rstd, out=out)[0] is out
    np.testing.assert_array_equal(out, expected)


@builds.each_build
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("apart", [False, True], ids=["as they lie", "in a larger array"])
@each_dtype
def test_few_channels_that_fill_the_cache_are_taken_some_at_a_time(dtype, apart, num_threads, isa):
    # Forward, 5 channels are taken as 2, 2 and 1, and in a gradient each alone: to the bit what
    # these are on their own.
    run = 10_001
    shape = (WINDOW // (5 * run * dtype.itemsize) * 2, 5, run)
    x, dy, out = (values(shape, dtype, seed) for seed in (3, 4, 5))
    room = None
    if apart:
        room = np.full((shape[0], 6, run), 7, dtype)  # a channel more
        out = room[:, :5]
    weight, bias, mean = (oracles.array((5,), np.float64, seed) for seed in range(3))
    rstd = np.linspace(0.7, 0.9, 5)
    threads = {"num_threads": num_threads}

    def forward(some: slice, out: np.ndarray | None = None) -> np.ndarray:
        given = x[:, some], None, None, weight[some], bias[some]
        return cbn.batch_norm(*given, training=True, out=out, **threads)

    def gradient(some: slice, training: bool, out: np.ndarray | None = None) -> tuple:
        given = dy[:, some], x[:, some], weight[some], mean[some], rstd[some]
        return cbn.batch_norm_backward(*given, training=training, out=out, **threads)

    with builds.running(isa):
        m2 = cbn.batch_stats(x, **threads).m2
        forward(slice(5), out)
        for some in (slice(2), slice(2, 4), slice(4, 5)):
            np.testing.assert_array_equal(out[:, some], forward(some))
            np.testing.assert_array_equal(m2[some], cbn.batch_stats(x[:, some], **threads).m2)
        for training in (True, False):
            sums = gradient(slice(5), training, out)[1:]
            for some in (slice(k, k + 1) for k in range(5)):
                alone = gradient(some, training)
                np.testing.assert_array_equal(out[:, some], alone[0])
                for given, expected in zip(sums, alone[1:], strict=True):
                    np.testing.assert_array_equal(given[some], expected)
    if room is not None:
        assert np.all(room[:, 5] == 7)


@builds.each_build
@each_dtype
def test_a_gradient_taken_by_rows_gives_the_bits_of_one_taken_by_channels(dtype, isa):
    x, dy = (values((90, 340, 49), dtype, seed) for seed in (3, 4))  # more than a block of each
    mean, rstd = oracles.array((340,), np.float64), np.full(340, 0.7)
    mean[::7] = 100  # far away: x - mean is summed
    with builds.running(isa):
        whole = cbn.batch_norm_backward(dy, x, None, mean, rstd)
        for c in range(0, 340, 10):  # so few that their runs are no row
            few = slice(c, c + 10)
            part = cbn.batch_norm_backward(dy[:, few], x[:, few], None, mean[few], rstd[few])
            np.testing.assert_array_equal(whole[0][:, few], part[0])
            np.testing.assert_array_equal(whole[1][few], part[1])
            np.testing.assert_array_equal(whole[2][few], part[2])


@builds.each_build
@each_dtype
def test_runs_that_do_not_follow_each_other_give_the_same_bits(dtype, isa):
    x, dy = (values((3, 40, 1700), dtype, seed) for seed in (3, 4))
    mean, rstd = oracles.array((40,)), np.full(40, 0.7)
    apart = [array.swapaxes(0, 1).copy().swapaxes(0, 1) for array in (x, dy)]
    y = cbn.batch_norm(x, None, None, training=True)
    dx = [cbn.batch_norm_backward(dy, x, None, mean, rstd, training=t)[0] for t in (True, False)]
    with builds.running(isa):
        for num_threads in (1, 3):
            threads = {"num_threads": num_threads}
            given = cbn.batch_norm(apart[0], None, None, training=True, **threads)
            np.testing.assert_array_equal(given, y)
            for training, expected in zip((True, False), dx, strict=True):
                given = cbn.batch_norm_backward(
                    apart[1], apart[0], None, mean, rstd, training=training, **threads
                )[0]
                np.testing.assert_array_equal(given, expected)
