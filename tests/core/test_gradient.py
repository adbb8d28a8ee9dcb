"""The gradient: against exact sums, finite differences and PyTorch's autograd."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbn

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
LAYOUTS = [pytest.param(lambda x: x, id="first"), pytest.param(oracles.channels_last, id="last")]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
SHAPES = [
    (2, 5),
    (515, 33),
    (3, 17, 1),
    (5, 7, 3),
    (2, 16, 16),
    (300, 2, 49),
    (1, 1, 5000),
    (3, 19, 7, 7),
    (4, 3, 56, 56),
    (2, 340, 7, 7),
    (2, 31, 2, 3, 4),
]
# Of dx in float32 are rounded x - m, a, their product, b and its sum with that, w, dy * w, and the
# sum: 6 ULP of the largest term at most, as that may be just below a power of two and the first sum
# twice as large. Random values stay far below.
BOUND = 6.0
MAX_ULP = 4.0
# Mean and deviation of x.
PLACES = [(0, 1e-2), (1, 1), (0, 1e3), (1e3, 1e-2), (1e6, 1e-2), (1e6, 1e3)]
LAYERS = {2: cbn.BatchNorm1d, 3: cbn.BatchNorm1d, 4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}


def arguments(x: np.ndarray, eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """weight, and the mean and rstd of x."""
    exact = oracles.statistics(x)
    weight = np.random.default_rng(1).normal(1, 0.5, x.shape[1])
    return (
        weight.astype(np.float32),
        exact.mean.astype(np.float64),
        (1 / np.sqrt(exact.var + np.longdouble(eps))).astype(np.float64),
    )


def assert_sums_are_exact(got, expected: oracles.Gradient, dy, x, mean, rstd) -> None:
    """To float64: relative to the sum of the magnitudes that are added."""
    apart = x.astype(np.longdouble) - oracles.along(mean, x.ndim, 1)
    sizes = (
        oracles.by_channel(np.abs(dy * apart)).sum(1) * rstd,
        oracles.by_channel(np.abs(dy.astype(np.longdouble))).sum(1),
    )
    for value, exact, size in zip(got, (expected.dweight, expected.dbias), sizes, strict=True):
        assert value.dtype == np.float64
        assert np.all(np.abs(value - exact) <= 1e-14 * size)


@each_dtype
@each_mode
@each_layout
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_within_4_ulp_of_its_largest_term(shape, layout, training, dtype):
    limit = MAX_ULP if training and dtype == np.float32 else oracles.MAX_ULP
    for mean, deviation in PLACES if np.dtype(dtype).itemsize > 2 else PLACES[:2]:
        rng = np.random.default_rng(0)
        x = layout(rng.normal(mean, deviation, shape).astype(dtype))
        dy = layout(rng.normal(0.3, 1, shape).astype(dtype))
        weight, *statistics = arguments(x)
        given_ = dy, x, weight.astype(np.float64), *statistics
        dx, *sums = cbn.batch_norm_backward(*given_, training=training)
        exact = oracles.gradient(dy, x, *statistics, weight, training)
        assert (dx.dtype, dx.strides) == (x.dtype, np.empty_like(x).strides)
        size = exact.largest
        if dtype == np.float64:  # sums of its own precision: their rounding shows
            size = oracles.along(oracles.by_channel(size).max(1), x.ndim, 1)
        assert oracles.error_in_ulp(dx, exact.dx, size) <= limit, (mean, deviation)
        assert_sums_are_exact(sums, exact, dy, x, *statistics)


def test_it_keeps_its_bound_where_a_search_made_it_large():
    # fmt: off
    x = np.array([
        -0.570102334022522, -0.6660484075546265, -1.6993420124053955, 0.7791488766670227,
        -0.09772410243749619, -0.3892592489719391, -0.19202055037021637, -0.7414695620536804,
        0.8731774687767029, 0.6555321216583252, -0.08729858696460724, -0.7768431901931763,
    ], np.float32)[:, None]
    dy = np.array([
        0.09178506582975388, -0.012066647410392761, -0.02622418850660324, -0.5987508296966553,
        -0.30560311675071716, -0.30633193254470825, -0.4577479064464569, -0.24824531376361847,
        -0.23828193545341492, -0.04949929937720299, -0.31706950068473816, -0.02566574513912201,
    ], np.float32)[:, None]
    # fmt: on
    weight, mean = np.array([0.7418111457124992]), np.array([-0.24268746065596739])
    rstd = np.array([1.4016760006358104])
    exact = oracles.gradient(dy, x, mean, rstd, weight)
    dx = cbn.batch_norm_backward(dy, x, weight, mean, rstd)[0]
    assert MAX_ULP < oracles.error_in_ulp(dx, exact.dx, exact.largest) <= BOUND


@given(oracles.inputs(), st.booleans())
def test_it_agrees_with_the_oracle_on_any_shape(drawn, training):
    x, axis = drawn
    dy = np.random.default_rng(x.size).normal(0, 1, x.shape).astype(x.dtype)
    stats = cbn.batch_stats(x, axis=axis)
    mean, rstd = stats.mean, 1 / np.sqrt(stats.var + 1e-5)
    dx = cbn.batch_norm_backward(dy, x, None, mean, rstd, training=training, axis=axis)[0]
    exact = oracles.gradient(dy, x, mean, rstd, None, training, axis)
    size = oracles.along(oracles.by_channel(exact.largest, axis).max(1), x.ndim, axis)
    assert oracles.error_in_ulp(dx, exact.dx, size) <= oracles.MAX_ULP


def difference(function, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The central finite differences of a scalar function of an array."""
    result = np.empty_like(at)
    for index in np.ndindex(at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        result[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return result


@each_mode
@each_layout
@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5), (3, 2, 2, 3), (2, 2, 3, 1, 2)], ids=str)
def test_it_is_what_finite_differences_find(shape, layout, training):
    x, dy = (layout(oracles.array(shape, np.float64, seed)) for seed in (0, 1))
    bn = LAYERS[len(shape)](shape[1], dtype="float64", eps=0.1)
    for seed, name in enumerate(("weight", "bias", "running_mean", "running_var"), 2):
        setattr(bn, name, np.abs(oracles.array(shape[1:2], np.float64, seed)))
    bn.train(training)
    state = bn.state_dict()

    def loss(x, weight, bias) -> float:
        bn.load_state_dict(state | {"weight": weight, "bias": bias})
        return float(np.sum(bn(x) * dy))

    weight, bias = state["weight"], state["bias"]
    expected = [
        difference(lambda moved: loss(moved, weight, bias), x),
        difference(lambda moved: loss(x, moved, bias), weight),
        difference(lambda moved: loss(x, weight, moved), bias),
    ]
    bn.load_state_dict(state)
    for got, want in zip(bn.backward(dy, x), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@each_mode
@pytest.mark.parametrize("shape", [(9, 6), (9, 6, 11), (4, 6, 7, 5), (3, 6, 4, 3, 5)], ids=str)
def test_it_is_what_autograd_finds(shape, training, track, affine, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: a peer, not needed")

    options = {"affine": affine, "track_running_stats": track, "eps": 1e-3}
    parameters = "float32" if dtype == "bfloat16" else dtype
    ours = LAYERS[len(shape)](6, dtype=parameters, **options)
    theirs = getattr(torch.nn, type(ours).__name__)(6, dtype=getattr(torch, parameters), **options)
    for seed, (key, parameter) in enumerate(theirs.state_dict().items()):
        if key != "num_batches_tracked":
            values = np.abs(oracles.array((6,), parameters, seed)) + 0.5
            parameter.copy_(torch.from_numpy(values))
            setattr(ours, key, values)
    ours.train(training), theirs.train(training)
    # What bfloat16 holds, in the type that PyTorch is asked to work in.
    x, dy = (oracles.array(shape, "float32", seed).astype(dtype) for seed in (8, 9))
    tensor, slope = (torch.from_numpy(array.astype(parameters)) for array in (x, dy))
    theirs(tensor.requires_grad_()).backward(slope)
    dx, dweight, dbias = ours.backward(dy, x)
    eps = float(oracles.finfo(dtype).eps)
    wide = dx.astype(np.float64)
    np.testing.assert_allclose(wide, tensor.grad.numpy(), rtol=16 * eps, atol=16 * eps)
    if affine:
        room = 512 * float(oracles.finfo(parameters).eps)
        np.testing.assert_allclose(dweight, theirs.weight.grad.numpy(), rtol=room, atol=room)
        np.testing.assert_allclose(dbias, theirs.bias.grad.numpy(), rtol=room, atol=room)
    else:
        assert (dweight, dbias) == (None, None)


# ---- where the result goes ----------------------------------------------------------------------


def case(shape=(4, 5, 6, 7), dtype=np.float32):
    """dy, x, weight, mean, rstd."""
    x = oracles.array(shape, np.float32, 1).astype(dtype)
    dy = oracles.array(shape, np.float32, 2).astype(dtype)
    return dy, x, *arguments(x)


@each_dtype
@each_mode
@each_layout
@pytest.mark.parametrize("shape", [(40, 7), (9, 5, 3), (4, 5, 6, 7)], ids=str)
@pytest.mark.parametrize("target", ["new", "dy", "x"])
def test_out_may_be_new_or_dy_or_x(target, shape, layout, training, dtype):
    dy, x, *others = case(shape, dtype)
    dy, x = layout(dy), layout(x)
    expected = cbn.batch_norm_backward(dy, x, *others, training=training)
    out = {"new": layout(np.zeros_like(x)), "dy": dy, "x": x}[target]
    got = cbn.batch_norm_backward(dy, x, *others, training=training, out=out)
    assert got[0] is out
    for value, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(value, want)


def test_dy_may_lie_otherwise_in_memory_than_x():
    dy, x, *others = case()
    expected = cbn.batch_norm_backward(dy, x, *others)
    for other in (oracles.channels_last(dy), np.asfortranarray(dy), np.repeat(dy, 2, -1)[..., ::2]):
        got = cbn.batch_norm_backward(other, x, *others)
        for value, want in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)


def test_a_broadcast_dy_is_taken_as_it_is():
    _, x, *others = case()
    ones = np.broadcast_to(np.float32(1), x.shape)
    expected = cbn.batch_norm_backward(np.ones_like(x), x, *others)
    for value, want in zip(cbn.batch_norm_backward(ones, x, *others), expected, strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)


def test_the_axis_may_be_the_last():
    dy, x, *others = case()
    moved = [np.moveaxis(array, 1, -1).copy() for array in (dy, x)]
    expected = cbn.batch_norm_backward(oracles.channels_last(dy), oracles.channels_last(x), *others)
    got = cbn.batch_norm_backward(*moved, *others, axis=-1)
    np.testing.assert_array_equal(np.moveaxis(got[0], -1, 1), expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype", "expected"),
    [
        ("float32", "float64", "float64"),
        ("float64", "float32", "float32"),
        ("float16", "float16", "float16"),
        ("float16", None, "float32"),
        ("float64", None, "float64"),
    ],
)
def test_the_gradient_of_weight_and_bias_has_the_dtype_of_weight(x_dtype, weight_dtype, expected):
    dy, x, weight, *others = case(dtype=x_dtype)
    weight = None if weight_dtype is None else weight.astype(weight_dtype)
    _, dweight, dbias = cbn.batch_norm_backward(dy, x, weight, *others)
    assert (dweight.dtype, dbias.dtype) == (expected, expected)


DY, X, WEIGHT, MEAN, RSTD = case()
READ_ONLY = np.zeros_like(X)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"dy": DY[:3]}, ValueError, r"dy: expected shape \(4, 5, 6, 7\), like x, got \(3, 5, 6"),
        ({"dy": DY.astype(np.float64)}, TypeError, "dy: expected float32, like x, got float64"),
        ({"dy": DY.astype(int)}, TypeError, "dy: expected float16, .* got int64"),
        ({"dy": None}, TypeError, "dy: expected an array .* got NoneType"),
        ({"x": X[0, 0, 0], "dy": X[0, 0, 0]}, ValueError, "x: expected at least 2 dimensions"),
        ({"x": X[:0], "dy": DY[:0]}, ValueError, "x: expected at least one value"),
        ({"weight": WEIGHT[:4]}, ValueError, r"weight: expected shape \(5,\), got \(4,\)"),
        ({"mean": MEAN[:4]}, ValueError, r"mean: expected shape \(5,\), got \(4,\)"),
        ({"mean": None}, TypeError, "mean: expected an array"),
        ({"rstd": -RSTD}, ValueError, "rstd: expected values >= 0, got -"),
        ({"rstd": RSTD.astype(int)}, TypeError, "rstd: expected a floating-point array"),
        ({"axis": 4}, ValueError, "axis: expected -4 to 3"),
        ({"num_threads": 0}, ValueError, "num_threads: expected None or an int >= 1"),
        ({"out": np.zeros((4, 5, 42), np.float32)}, ValueError, "out: expected shape"),
        ({"out": np.zeros(X.shape)}, TypeError, "out: expected float32, like x, got float64"),
        ({"out": READ_ONLY}, ValueError, "out: expected a writable array, got a read-only one"),
        ({"out": X[::-1]}, ValueError, "out: overlaps x; expected x itself"),
        ({"out": DY[::-1]}, ValueError, "out: overlaps dy; expected dy itself"),
    ],
)
def test_what_it_cannot_take_is_refused_and_nothing_changes(changed, error, message):
    given_ = {"dy": DY, "x": X, "weight": WEIGHT, "mean": MEAN, "rstd": RSTD} | changed
    before = X.copy(), DY.copy()
    with pytest.raises(error, match=message):
        cbn.batch_norm_backward(**given_)
    np.testing.assert_array_equal((X, DY), before)


# ---- of a layer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_remembers_what_it_was_trained_on(affine, track, channels_last):
    bn = cbn.BatchNorm2d(
        5, affine=affine, track_running_stats=track, channels_last=channels_last, eps=1e-3
    )
    x, dy = (oracles.array((4, 5, 6, 7), seed=seed) for seed in (1, 2))
    axis = 1
    if channels_last:
        x, dy, axis = np.moveaxis(x, 1, -1).copy(), np.moveaxis(dy, 1, -1).copy(), -1
    if affine:
        bn.weight = arguments(X)[0]
    bn(oracles.array(x.shape, seed=7))
    bn(x)
    stats = cbn.batch_stats(x, axis=axis)
    expected = cbn.batch_norm_backward(
        dy, x, bn.weight, stats.mean, 1 / np.sqrt(stats.var + 1e-3), axis=axis
    )
    for got in (bn.backward(dy), bn.backward(dy), bn.backward(dy, x)):
        np.testing.assert_array_equal(got[0], expected[0])
        if affine:
            np.testing.assert_array_equal(got[1:], expected[1:])
        else:
            assert got[1:] == (None, None)


def test_it_leaves_the_layer_as_it_was():
    bn = cbn.BatchNorm2d(5)
    bn(X)
    before = bn.state_dict()
    bn.backward(DY)
    bn.backward(DY, X)
    bn.eval().backward(DY, X)
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("target", ["dy", "x"])
def test_of_a_layer_in_place(target):
    bn, dy, x = cbn.BatchNorm2d(5), DY.copy(), X.copy()
    bn(x)
    expected = bn.backward(dy)[0].copy()
    out = {"dy": dy, "x": x}[target]
    assert bn.backward(dy, out=out)[0] is out
    np.testing.assert_array_equal(out, expected)


def test_in_eval_the_statistics_are_the_running_ones():
    bn = cbn.BatchNorm2d(5)
    bn(X)
    bn.eval()
    rstd = 1 / np.sqrt(bn.running_var.astype(np.float64) + bn.eps)
    expected = cbn.batch_norm_backward(DY, X, bn.weight, bn.running_mean, rstd, training=False)
    for got, want in zip(bn.backward(DY, X), expected, strict=True):
        np.testing.assert_array_equal(got, want)


NOTHING = "x: expected an array, since no training forward came before, or one that wrote over its"


def untrained() -> cbn.BatchNorm2d:
    return cbn.BatchNorm2d(5)


def trained_in_place() -> cbn.BatchNorm2d:
    bn, x = untrained(), X.copy()
    bn(x)
    bn(x, out=x)
    return bn


def switched_to_eval() -> cbn.BatchNorm2d:
    bn = untrained()
    bn(X)
    return bn.eval()


def only_evaluated() -> cbn.BatchNorm2d:
    bn = untrained().eval()
    bn(X)
    return bn.train()


@pytest.mark.parametrize("layer", [untrained, trained_in_place, switched_to_eval, only_evaluated])
def test_without_a_training_forward_x_is_needed(layer):
    with pytest.raises(ValueError, match=NOTHING):
        layer().backward(DY)
    assert layer().backward(DY, X)[0].shape == X.shape


@pytest.mark.parametrize(
    ("arguments_", "error", "message"),
    [
        ((DY[:2],), ValueError, r"dy: expected shape \(4, 5, 6, 7\), like x, got \(2, 5, 6, 7\)"),
        ((DY, X[:, :4]), ValueError, "expected 5 channels on axis 1"),
        ((DY[..., 0], X[..., 0]), ValueError, "expected 4D input"),
        ((DY, None, READ_ONLY), ValueError, "out: expected a writable array"),
    ],
)
def test_a_layer_refuses_what_does_not_fit(arguments_, error, message):
    bn = untrained()
    bn(X)
    with pytest.raises(error, match=message):
        bn.backward(*arguments_)


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_a_running_variance_below_zero_is_refused(bad):
    bn = untrained().eval()
    bn.running_var[2] = bad
    with pytest.raises(ValueError, match=f"running_var: expected values >= 0, got {bad} at chan"):
        bn.backward(DY, X)


@pytest.mark.parametrize("training", [True, False])
def test_a_divisor_of_zero_is_refused(training):
    bn = cbn.BatchNorm2d(5, eps=0).train(training)
    bn.running_var[0] = 0
    x = X.copy()
    x[:, 0] = 3
    name = "variance of x" if training else "running_var"
    with pytest.raises(ValueError, match=rf"{name}: expected values > 0 \(eps is 0\), got 0.0 at"):
        bn.backward(DY, x)


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4), (3, 2, 20), (3, 40, 50)])
def test_in_eval_the_gradient_of_x_does_not_depend_on_it(shape):
    x = np.ones(shape, np.float32)
    x.flat[0] = np.inf
    dx = cbn.BatchNorm1d(shape[1]).eval().backward(np.ones_like(x), x)[0]
    np.testing.assert_array_equal(dx, np.float32(1 / np.sqrt(1 + 1e-5)))


@pytest.mark.parametrize("axis", [1, -1])
def test_dweight_of_a_channel_that_hardly_varies_keeps_its_digits(axis):
    rng = np.random.default_rng(0)
    x = np.full((8, 16, 4096), 0.0125, np.float32)
    x[0, :, :3] = np.nextafter(np.float32(0.0125), np.float32(1))
    dy = (1 + rng.normal(size=x.shape)).astype(np.float32)
    mean, rstd = x.mean((0, 2), dtype=np.float64), np.full(16, 1 / np.sqrt(1e-5))
    apart = x.astype(np.float64) - mean[:, None]
    expected = (dy * apart).sum((0, 2)) * rstd
    moved = [np.ascontiguousarray(np.moveaxis(array, 1, axis)) for array in (dy, x)]
    _, dweight, _ = cbn.batch_norm_backward(*moved, np.ones(16), mean, rstd, axis=axis)
    np.testing.assert_allclose(dweight, expected, rtol=1e-8)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("outliers", [np.s_[0, :, 0], np.s_[:, :, 0], np.s_[:, :, :20]])
@pytest.mark.parametrize("mean", [30, 1000, 1e6])
def test_dweight_keeps_its_digits_beside_a_few_values_far_from_the_mean(mean, outliers, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(mean, 0.1, (2, 7, 4563)).astype(np.float32)
    x[outliers] = 0
    dy = rng.normal(size=x.shape).astype(np.float32)
    exact = oracles.statistics(x)
    for centre, rstd in [
        (exact.mean, 1 / np.sqrt(exact.var + np.longdouble(1e-5))),
        (np.full(7, mean), np.full(7, 10)),  # in eval the outliers do not show in these
    ]:
        centre, rstd = centre.astype(np.float64), rstd.astype(np.float64)
        moved = [np.ascontiguousarray(np.moveaxis(array, 1, axis)) for array in (dy, x)]
        got = cbn.batch_norm_backward(*moved, np.ones(7), centre, rstd, axis=axis)[1:]
        expected = oracles.gradient(dy, x, centre, rstd, None, True)
        assert_sums_are_exact(got, expected, dy, x, centre, rstd)


@pytest.mark.parametrize("axis", [1, -1])
def test_an_infinite_slope_gives_infinite_sums(axis):
    dy, x = np.ones((2, 4, 3, 40))
    x[0, :, 0] = 2
    dy[0, 1, 3] = np.inf
    dy, x = (np.ascontiguousarray(np.moveaxis(array, 1, axis)) for array in (dy, x))
    mean, rstd = np.array([0, 1.5, 1.5]), np.ones(3)
    _, dweight, dbias = cbn.batch_norm_backward(dy, x, np.ones(3), mean, rstd, axis=axis)
    assert dbias[1] == np.inf
    assert dweight[1] == -np.inf
    assert np.isfinite(dweight[[0, 2]]).all()
    assert np.isfinite(dbias[[0, 2]]).all()
