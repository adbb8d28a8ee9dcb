"""float16 and bfloat16: every one of their 65,536 patterns, in every build."""

from __future__ import annotations

import copy
import pickle

import builds
import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


def patterns(dtype: np.dtype) -> np.ndarray:
    """Every value of a 16-bit type: subnormals, infinities and NaNs of all kinds too."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def finite_patterns(dtype: np.dtype) -> np.ndarray:
    values = patterns(dtype)
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
        return values[np.isfinite(values)]


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def rounded_once(x: np.ndarray, shift, scale, bias, residual=None) -> np.ndarray:
    """(x - shift) * scale + bias in NumPy's float32, cast by NumPy or ml_dtypes."""
    single = np.float32
    y = (x.astype(single) - single(shift)) * single(scale) + single(bias)
    if residual is not None:
        y = y + residual.astype(single)
    return y.astype(x.dtype)


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, or NaN for NaN."""
    assert got.dtype == expected.dtype
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


# What each does to the patterns: nothing; makes ties of odd ones; makes subnormals; makes
# infinities; cancels; moves a little.
COEFFICIENTS = [
    (0.0, 1.0, 0.0),
    (0.0, 1.5, 0.0),
    (0.0, 0.75, 0.0),
    (0.0, 2.0**-9, 0.0),
    (0.0, -(2.0**-140), 0.0),
    (0.0, 3000.0, 0.0),
    (1.0, 1.0, 2.0**-12),
    (0.337, -1.7, 1e-6),
]


@builds.each_build
@each_dtype
@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
class TestEveryPattern:
    def test_in_a_channel(self, coefficients, dtype, isa):
        shift, scale, bias = np.float32(coefficients)
        x = patterns(dtype).reshape(2, 1, -1)
        with builds.running(isa):
            # var is 1 and eps 0: the coefficients are the arguments themselves
            given = [np.array([value]) for value in (shift, np.float32(1), scale, bias)]
            y = cbn.batch_norm(x, *given, eps=0)
        assert_same_bits(y, rounded_once(x, shift, scale, bias))

    def test_with_a_residual(self, coefficients, dtype, isa):
        shift, scale, bias = np.float32(coefficients)
        x = patterns(dtype).reshape(-1, 4, 64)
        residual = x[::-1, ::-1, ::-1].copy()
        # num_threads=2: the way of large arrays, which every build has
        f = cbn.ScaleShift(
            *(np.full(4, value) for value in (shift, scale, bias)), dtype=dtype, num_threads=2
        )
        with builds.running(isa):
            y = f(x, residual=residual)
        assert_same_bits(y, rounded_once(x, shift, scale, bias, residual))


@builds.each_build
@each_dtype
@pytest.mark.parametrize("shape", [(1, 1 << 16), (1 << 6, 1 << 10), (1 << 9, 32, 4)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_every_pattern_with_coefficients_of_each_channel(seed, shape, dtype, isa):
    rng = np.random.default_rng(seed)
    channels = shape[1]
    # over all magnitudes that float16 has, so that results fall between any two of its values
    shift, scale, bias = (
        (rng.normal(0, 1, channels) * 2.0 ** rng.integers(-20, 6, channels)).astype(np.float32)
        for _ in range(3)
    )
    x = patterns(dtype).reshape(shape)
    with builds.running(isa):
        y = cbn.batch_norm(x, shift, np.ones(channels, np.float32), scale, bias, eps=0)
    given = (oracles.along(values, x.ndim, 1) for values in (shift, scale, bias))
    assert_same_bits(y, rounded_once(x, *given))


@builds.each_build
@each_dtype
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("offset", [0, 1, 8, 16, 24, 31])
def test_every_pattern_streamed_to_any_place_in_a_cache_line(offset, axis, dtype, isa):
    shift, scale, bias = np.float32([[0, 0.337, 1], [1.5, -1.7, 1], [0, 1e-6, 2.0**-12]])
    x = np.resize(patterns(dtype), (14, 3, 107_001))  # above 8 MiB, from which stores are streamed
    x = np.moveaxis(x, 1, axis).copy()
    room = np.full(x.size + 96, 7, dtype)
    start = 32 + (offset - room.ctypes.data // 2) % 32
    out = room[start : start + x.size].reshape(x.shape)
    with builds.running(isa):
        cbn.batch_norm(
            x, shift, np.ones(3, np.float32), scale, bias, eps=0, axis=axis, out=out, num_threads=2
        )
    given = (oracles.along(values, x.ndim, axis) for values in (shift, scale, bias))
    assert_same_bits(out, rounded_once(x, *given))
    assert np.all(room[:start] == 7)
    assert np.all(room[start + x.size :] == 7)


@pytest.mark.parametrize("axis", [1, -1])
def test_the_compiled_call_on_every_pattern_of_float16(axis):
    dtype = np.dtype(np.float16)
    x = np.moveaxis(patterns(dtype).reshape(-1, 4, 128), 1, axis).copy()
    for shift, scale, bias in COEFFICIENTS:
        f = cbn.ScaleShift(
            *(np.full(4, value) for value in (shift, scale, bias)), dtype=dtype, axis=axis
        )
        assert_same_bits(f(x), rounded_once(x, shift, scale, bias))


@builds.each_build
@each_dtype
@pytest.mark.parametrize("shape", [(-1, 1), (-1, 16), (1, 1, -1), (4, 8, -1), (-1, 8, 4)], ids=str)
def test_statistics_of_every_finite_pattern_are_those_of_their_float64_values(shape, dtype, isa):
    x = np.random.default_rng(0).permutation(finite_patterns(dtype)).reshape(shape)
    exact = oracles.statistics(x)
    with builds.running(isa):
        stats = cbn.batch_stats(x)
        wide = cbn.batch_stats(x.astype(np.float64))
    assert oracles.relative_error(stats.var, exact.var) <= oracles.VARIANCE_RTOL
    assert np.all(np.abs(stats.mean - exact.mean) <= 1e-12 * np.sqrt(exact.var))
    for name in ("mean", "mean_low", "m2"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(wide, name))


@each_dtype
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_training_rounds_once_more_than_float32_does(mean, layout, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(mean, 2, (9, 19, 7, 7)).astype(dtype)
    if layout == "last":
        x = oracles.channels_last(x)
    weight, bias = oracles.array((19,), seed=1), oracles.array((19,), seed=2)
    y = cbn.batch_norm(x, None, None, weight, bias, training=True)
    assert (y.dtype, y.strides) == (dtype, x.strides)
    exact = oracles.statistics(x)
    assert oracles.ulp_error(y, x, exact.mean, exact.var, weight, bias) <= oracles.MAX_ULP
    single = cbn.batch_norm(x.astype(np.float32), None, None, weight, bias, training=True)
    np.testing.assert_array_equal(y, single.astype(dtype))


@each_dtype
@pytest.mark.parametrize("state", ["float32", "float64", "same"])
def test_running_statistics_may_be_of_a_wider_type(state, dtype):
    state_dtype = dtype if state == "same" else np.dtype(state)
    x = oracles.array((40, 5), dtype)
    mean, var = np.full(5, 0.3, state_dtype), np.full(5, 2, state_dtype)
    exact = oracles.statistics(x)
    unbiased = exact.var * 40 / 39
    expected = oracles.running(mean, exact.mean, 0.1), oracles.running(var, unbiased, 0.1)
    cbn.batch_norm(x, mean, var, training=True)
    for got, value in zip((mean, var), expected, strict=True):
        assert got.dtype == state_dtype
        room = oracles.spacing(value, state_dtype) / 2 + 2 * oracles.spacing(value, np.float64)
        assert np.all(np.abs(got.astype(np.longdouble) - value) <= room)


@each_dtype
def test_a_layer_of_float32_takes_them(dtype):
    x = oracles.array((8, 5, 6, 7), dtype)
    bn = cbn.BatchNorm2d(5)
    y = bn(x)
    assert (y.dtype, bn.running_mean.dtype) == (dtype, np.float32)
    wide = cbn.BatchNorm2d(5)
    np.testing.assert_array_equal(y, wide(x.astype(np.float32)).astype(dtype))
    np.testing.assert_array_equal(bn.running_var, wide.running_var)
    z = bn.eval()(x)
    np.testing.assert_array_equal(z, wide.eval()(x.astype(np.float32)).astype(dtype))
    np.testing.assert_array_equal(bn.fuse(dtype=dtype)(x), z)


@each_dtype
def test_a_layer_may_have_their_dtype(dtype):
    x = oracles.array((8, 5, 6, 7), dtype)
    bn = cbn.BatchNorm2d(5, dtype=dtype.name)
    assert bn.dtype == dtype
    assert repr(bn).endswith(f"dtype='{dtype.name}')")
    bn.weight = np.linspace(0.5, 1.5, 5)
    for _ in range(3):
        assert bn(x).dtype == dtype
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert getattr(bn, name).dtype == dtype
    first = bn.eval()(x)
    for _ in range(2):  # what is kept between calls
        np.testing.assert_array_equal(bn(x), first)
    np.testing.assert_array_equal(bn.fuse()(x), first)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        np.testing.assert_array_equal(other(x), first)
    fresh = cbn.BatchNorm2d(5, dtype=dtype.name)
    fresh.load_state_dict(bn.state_dict())
    np.testing.assert_array_equal(fresh.eval()(x), first)


@each_dtype
def test_a_parameter_of_theirs_changed_in_place_is_seen(dtype):
    x = oracles.array((8, 5), dtype)
    bn = cbn.BatchNorm1d(5, dtype=dtype.name).eval()
    before = bn(x), bn(x)
    bn.running_mean[0] = 3
    after = bn(x)
    np.testing.assert_array_equal(after[:, 1:], before[1][:, 1:])
    assert np.all(after[:, 0] < before[1][:, 0])


@each_dtype
def test_out_must_be_of_the_same_type(dtype):
    x = oracles.array((8, 5), dtype)
    other = DTYPES[1 - DTYPES.index(dtype)]
    with pytest.raises(TypeError, match=f"out: expected {dtype}, like x, got {other}"):
        cbn.BatchNorm1d(5)(x, out=np.empty(x.shape, other))
    with pytest.raises(TypeError, match=f"x: expected {dtype}, got {other}"):
        cbn.BatchNorm1d(5, dtype=dtype.name).fuse()(x.astype(other))


@each_dtype
@pytest.mark.parametrize("training", [True, False])
def test_torch_gives_the_same_but_for_a_rounding(training, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: a peer, not needed")

    x = oracles.array((9, 6, 11), dtype)
    mean, var, weight, bias = (np.abs(oracles.array((6,), seed=seed)) for seed in range(4))
    tensor = torch.from_numpy(x.view(np.int16)).view(getattr(torch, dtype.name))
    others = [torch.from_numpy(values.copy()) for values in (mean, var, weight, bias)]
    theirs = torch.nn.functional.batch_norm(tensor, *others, training, 0.3, 1e-2)
    ours = cbn.batch_norm(x, mean, var, weight, bias, training, 0.3, 1e-2)
    expected = theirs.view(torch.int16).numpy().view(dtype).astype(np.float64)
    unit = oracles.spacing(oracles.largest(expected, ours.astype(np.float64), 1.0), dtype)
    assert np.all(np.abs(ours.astype(np.float64) - expected) <= unit)
    np.testing.assert_allclose(mean, others[0].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, others[1].numpy(), rtol=1e-5, atol=1e-6)
