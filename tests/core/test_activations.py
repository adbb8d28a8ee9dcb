"""What `ScaleShift` may do after the map: add a residual, apply an activation."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import builds
import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn

ACTIVATIONS = [None, "relu", "relu6", "leaky_relu", "silu", "hardswish"]
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
LAYOUTS = [pytest.param(lambda x: x, id="first"), pytest.param(oracles.channels_last, id="last")]

#: Error of the result, in ULP of the largest term: silu and hardswish are as steep as 1.1 and 1.5,
#: which stretches the error of what they are applied to, and round by themselves.
BOUNDS = {activation: oracles.MAX_ULP for activation in ACTIVATIONS} | {
    "silu": 4.0,
    "hardswish": 5.0,
}


def fused(dtype=np.float32, activation=None, channels: int = 5, **options) -> cbn.ScaleShift:
    shift, scale, bias = (oracles.array((channels,), seed=seed) for seed in range(3))
    return cbn.ScaleShift(shift, scale, bias, activation=activation, dtype=dtype, **options)


@each_dtype
@each_activation
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_within_its_bound_of_the_largest_term(layout, with_residual, activation, dtype):
    wide = np.dtype(dtype).itemsize > 2
    for mean in (0, 1, 1e3, 1e6) if wide else (0, 1):
        for shape in [(515, 33), (5, 7, 3), (40, 2, 49), (3, 19, 7, 8)]:
            rng = np.random.default_rng(0)
            channels = shape[1]
            x = layout(rng.normal(mean, 2, shape).astype(dtype))
            residual = layout(rng.normal(0, 3, shape).astype(dtype)) if with_residual else None
            state = {
                "running_mean": rng.normal(mean, 2, channels).astype(np.float32),
                "running_var": rng.uniform(1, 4, channels).astype(np.float32),
                "weight": rng.normal(1, 0.5, channels).astype(np.float32),
                "bias": rng.normal(0, 1, channels).astype(np.float32),
            }
            bn = (cbn.BatchNorm2d if len(shape) == 4 else cbn.BatchNorm1d)(channels)
            bn.load_state_dict(state)
            y = bn.fuse(activation, dtype=dtype)(x, residual=residual)
            value, size = (
                oracle(x, *state.values()) for oracle in (oracles.batch_norm, oracles.largest_term)
            )
            if residual is not None:
                other = residual.astype(np.longdouble)
                value = value + other
                size = oracles.largest(size, other, value)
            expected = oracles.activated(value, activation)
            assert oracles.error_in_ulp(y, expected, size) <= BOUNDS[activation], (mean, shape)


@pytest.mark.parametrize("slope", [0.2, 1.0, -0.5, 3])
def test_the_slope_of_leaky_relu(slope):
    f = cbn.ScaleShift(
        np.zeros(1),
        np.ones(1),
        np.zeros(1),
        activation="leaky_relu",
        negative_slope=slope,
        dtype="float64",
    )
    assert f.negative_slope == slope
    x = np.array([[-2.0], [-0.0], [0.0], [3.0]])
    np.testing.assert_array_equal(f(x), np.where(x < 0, x * slope, x))


IDENTITY = np.zeros(1), np.ones(1), np.zeros(1)


@each_dtype
@each_activation
def test_torch_computes_the_same(activation, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: a peer, not needed")

    names = {"silu": "silu", "hardswish": "hardswish", "relu6": "relu6", None: "identity"}
    name = names.get(activation, activation)
    theirs = getattr(torch.nn.functional, name, lambda tensor: tensor)
    x = np.linspace(-9, 9, 1001).astype(dtype).reshape(-1, 1)
    expected = theirs(torch.from_numpy(x.astype(np.float64))).numpy()
    y = cbn.ScaleShift(*IDENTITY, activation=activation, dtype=dtype)(x)
    assert oracles.error_in_ulp(y, expected, oracles.largest(expected, 6)) <= 1


@builds.each_build
@each_dtype
@each_activation
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", [(40, 5), (3, 5, 7), (2, 5, 33)], ids=str)
def test_a_nan_passes_and_touches_nothing_else(shape, with_residual, activation, dtype, isa):
    x = oracles.array(shape, np.float32).astype(dtype)
    residual = oracles.array(shape, np.float32, 1).astype(dtype) if with_residual else None
    f = fused(dtype, activation, num_threads=2)  # the way that every build has
    compiled = fused(dtype, activation)
    with builds.running(isa):
        clean = f(x, residual=residual)
        x.reshape(-1)[::9] = np.nan
        nan = np.isnan(x)
        if residual is not None:
            residual.reshape(-1)[4::17] = np.nan
            nan = nan | np.isnan(residual)
        for y in (f(x, residual=residual), compiled(x, residual=residual)):
            np.testing.assert_array_equal(np.isnan(y), nan)
            np.testing.assert_array_equal(y[~nan], clean[~nan])


@each_dtype
@each_activation
def test_an_infinity_goes_where_the_activation_sends_it(activation, dtype):
    x = np.array([[np.inf], [1.0], [-1.0]], np.float32).astype(dtype)
    y = cbn.ScaleShift(*IDENTITY, activation=activation, dtype=dtype)(x)
    assert y[0] == (6 if activation == "relu6" else np.inf)
    assert np.isfinite(y[1:]).all()


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_minus_infinity_too(activation):
    y = cbn.ScaleShift(*IDENTITY, activation=activation)(np.array([[-np.inf]], np.float32))
    assert y[0] == (-np.inf if activation is None else 0)


# ---- residual, out -------------------------------------------------------------------------------

SHAPES = [(1, 5), (40, 5), (3, 5, 7), (2, 5, 33), (2, 5, 6, 7)]


@each_dtype
@pytest.mark.parametrize("activation", [None, "silu"], ids=str)
@pytest.mark.parametrize("num_threads", [None, 2], ids=["compiled", "checked"])
@pytest.mark.parametrize("target", ["residual", "x", "both"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_out_may_be_the_residual_or_x_or_both(shape, target, num_threads, activation, dtype):
    f = fused(dtype, activation, num_threads=num_threads)
    x, residual = (oracles.array(shape, np.float32, seed).astype(dtype) for seed in (5, 6))
    if target == "both":
        residual = x
    expected = f(x, residual=residual)
    out = residual if target == "residual" else x
    assert f(x, out, residual) is out
    np.testing.assert_array_equal(out, expected)


def test_a_large_call_in_place_is_whole():
    f = fused(activation="relu", channels=3, num_threads=2)
    x, residual = (oracles.array((2, 3, 500, 501), seed=seed) for seed in (5, 6))
    expected = f(x, residual=residual)
    f(x, out=residual, residual=residual)
    np.testing.assert_array_equal(residual, expected)


X = oracles.array((4, 5, 7))


@pytest.mark.parametrize(
    ("residual", "error", "message"),
    [
        (X[:3], ValueError, r"residual: expected shape \(4, 5, 7\), like x, got \(3, 5, 7\)"),
        (X[..., 0], ValueError, r"residual: expected shape \(4, 5, 7\), like x, got \(4, 5\)"),
        (X.astype(np.float64), TypeError, "residual: expected float32, like x, got float64"),
        (X.astype(int), TypeError, "residual: expected float16, .* or float64, got int64"),
        (X.tolist(), TypeError, "residual: expected an array .* got list"),
    ],
)
def test_a_residual_that_does_not_fit_is_refused(residual, error, message):
    out = np.full_like(X, 7)
    with pytest.raises(error, match=message):
        fused()(X, out, residual)
    assert np.all(out == 7)


def test_an_out_that_overlaps_the_residual_is_refused():
    memory = oracles.array((X.size + 6,))
    residual, out = (memory[at : at + X.size].reshape(X.shape) for at in (0, 6))
    with pytest.raises(ValueError, match="out: overlaps residual; expected residual itself or mem"):
        fused()(X, out, residual)


# ---- the two ways of a call ----------------------------------------------------------------------


def strided(x: np.ndarray) -> np.ndarray:
    """x again, where no run is contiguous."""
    return np.repeat(x, 2, axis=-1)[..., ::2]


@each_dtype
@each_activation
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_give_the_same_bits(shape, axis, activation, dtype):
    f = fused(dtype, activation, axis=axis)
    x, residual = (oracles.array(shape, np.float32, seed).astype(dtype) for seed in (5, 6))
    if axis == -1:
        x, residual = (np.moveaxis(array, 1, -1).copy() for array in (x, residual))
    view, other = strided(x), strided(residual)
    np.testing.assert_array_equal(f(x), f(view))
    np.testing.assert_array_equal(f(x, residual=residual), f(view, residual=other))
    np.testing.assert_array_equal(f(x, residual=residual), f(x, residual=other))
    wider = np.concatenate([x, x], axis)  # a part of it has runs of its own strides
    out = wider[:, :5] if axis == 1 else wider[..., :5]
    np.testing.assert_array_equal(f(x, np.empty_like(x)), f(x, out))


REFUSED = {
    "dtype": (np.ones((2, 5)), None, TypeError, "x: expected float32, got float64"),
    "channels": (np.ones((2, 4), np.float32), None, ValueError, "x: expected 5 channels"),
    "rank": (np.ones(5, np.float32), None, ValueError, "x: expected at least 2 dimensions"),
    "bytes": (np.ones((2, 5), ">f4"), None, TypeError, "x: expected .* got >f4"),
    "list": ([[1.0] * 5], None, TypeError, "x: expected an array .* got list"),
    "out's shape": (
        np.ones((2, 5), np.float32),
        np.ones((5, 2), np.float32),
        ValueError,
        r"out: expected shape \(2, 5\), got \(5, 2\)",
    ),
    "out's dtype": (
        np.ones((2, 5), np.float32),
        np.ones((2, 5), np.int32),
        TypeError,
        "out: expected float16, .* got int32",
    ),
    "read-only out": (
        np.ones((2, 5), np.float32),
        np.broadcast_to(np.float32(1), (2, 5)),
        ValueError,
        "out: expected a writable array",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_small_calls_are_checked_too(reason):
    x, out, error, message = REFUSED[reason]
    with pytest.raises(error, match=message):
        fused()(x, out)


def test_a_small_out_that_overlaps_x_is_refused():
    memory = np.ones(11, np.float32)
    with pytest.raises(ValueError, match="out: overlaps x"):
        fused()(memory[:10].reshape(2, 5), memory[1:].reshape(2, 5))


def test_what_has_the_buffer_protocol_is_taken():
    x = oracles.array((4, 5))
    f = fused()
    memory = memoryview(bytearray(x.tobytes())).cast("f", shape=(4, 5))
    np.testing.assert_array_equal(f(memory), f(x))
    np.testing.assert_array_equal(f(memory, np.empty_like(x)), f(x))


# ---- immutable, shared ---------------------------------------------------------------------------


@each_activation
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
)
def test_a_copy_computes_the_same(duplicate, activation):
    f = fused(np.float32, activation, negative_slope=0.3)
    other = duplicate(f)
    for name in ("activation", "negative_slope", "dtype", "axis", "num_features"):
        assert getattr(other, name) == getattr(f, name)
    np.testing.assert_array_equal(other(X), f(X))
    np.testing.assert_array_equal(other(strided(X), residual=X), f(strided(X), residual=X))


def test_its_activation_cannot_be_set():
    f = fused(activation="relu")
    for name in ("activation", "negative_slope", "channels", "kind", "how"):
        with pytest.raises(AttributeError):
            setattr(f, name, None)


def test_it_cannot_be_made_anew():
    f = fused()
    before = f(X), f(strided(X)), f.scale.copy()
    with pytest.raises(TypeError, match="ScaleShift is immutable"):
        f.__init__(np.ones(5), np.ones(5), np.ones(5))
    with pytest.raises(TypeError, match="ScaleShift is immutable"):
        f._prepare(np.ones((3, 5)), np.dtype("f"), False, 0, 0.0, (2, 5), (), (0, 1, True))
    for got, want in zip((f(X), f(strided(X)), f.scale), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_it_does_not_follow_the_arrays_that_it_was_made_from():
    arrays = [oracles.array((5,), np.float64, seed) for seed in range(3)]
    f = cbn.ScaleShift(*arrays, dtype="float64")
    x = oracles.array((4, 5), np.float64)
    before = f(x)
    for array in arrays:
        array[...] = 0
    np.testing.assert_array_equal(f(x), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "gelu"}, ValueError, "activation: expected one of None, 'relu', .*'gelu'"),
        ({"activation": 1}, ValueError, "activation: expected one of .* got 1"),
        ({"negative_slope": "0.1"}, TypeError, "negative_slope: expected a number, got str"),
        ({"axis": 2}, ValueError, "axis: expected 1 or -1, got 2"),
        ({"dtype": "int8"}, TypeError, "dtype: expected float16, .* got int8"),
    ],
)
def test_options_that_it_does_not_have_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        cbn.ScaleShift(np.ones(2), np.ones(2), np.ones(2), **options)


def test_its_text_names_the_activation():
    assert repr(fused(activation="silu")) == (
        "ScaleShift(5, activation='silu', dtype='float32', axis=1)"
    )


@each_activation
@pytest.mark.parametrize("values", [320, 60_000], ids=["small", "without the GIL"])
def test_eight_threads_may_call_it_at_once(values, activation):
    f = fused(activation=activation)
    inputs = [oracles.array((values // 5, 5), seed=seed) for seed in range(8)]
    expected = [f(x, residual=x) for x in inputs]

    def call(at: int) -> bool:
        out = np.empty_like(inputs[at])
        return all(np.array_equal(f(inputs[at], out, inputs[at]), expected[at]) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


def test_silu_goes_to_zero_at_minus_infinity():
    f = cbn.ScaleShift(np.zeros(1), np.ones(1), np.zeros(1), activation="silu", dtype="float64")
    y = f(np.array([[-1e308], [-np.inf], [-746.0], [np.inf]]))
    np.testing.assert_array_equal(y.ravel(), [0.0, 0.0, 0.0, np.inf])


def test_hardswish_of_a_huge_value_is_that_value():
    f = cbn.ScaleShift(np.zeros(1), np.ones(1), np.zeros(1), activation="hardswish")
    assert f(np.array([[1e38]], np.float32)) == np.float32(1e38)
