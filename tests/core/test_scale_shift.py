"""`ScaleShift`, the fused eval form of a layer."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn


def layer(channels: int = 5, mean: float = 1.0, **options) -> cbn.BatchNorm1d:
    bn = cbn.BatchNorm1d(channels, **options)
    bn.weight, bn.bias = oracles.array((channels,), seed=1), oracles.array((channels,), seed=2)
    bn.running_mean = oracles.array((channels,), seed=3) + mean
    bn.running_var = np.abs(oracles.array((channels,), seed=4))
    return bn.eval()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 7), (3, 5, 2, 2), (3, 5, 2, 2, 2)], ids=str)
def test_it_gives_the_bits_of_the_layer_in_eval(shape, dtype):
    x = oracles.array(shape, dtype)
    layers = {2: cbn.BatchNorm1d, 3: cbn.BatchNorm1d, 4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}
    bn = layers[len(shape)](5, dtype=dtype)
    bn.load_state_dict(layer().state_dict())
    np.testing.assert_array_equal(bn.eval().fuse()(x), bn(x))


def test_channels_last_comes_along():
    bn = layer(channels_last=True)
    x = oracles.array((3, 7, 5))
    np.testing.assert_array_equal(bn.fuse()(x), bn(x))


def test_it_keeps_its_digits_where_the_mean_is_far_above_the_deviation():
    bn = layer(mean=1e6)
    x = (oracles.array((50, 5)) + np.float32(1e6)).astype(np.float32)
    state = bn.running_mean, bn.running_var, bn.weight, bn.bias
    assert oracles.ulp_error(bn.fuse()(x), x, *state) <= oracles.MAX_ULP


def test_its_coefficients_are_rounded_to_its_dtype_and_held_in_float64():
    f = layer().fuse()
    for values in (f.shift, f.scale, f.bias):
        assert values.dtype == np.float64
        assert values.shape == (5,)
        np.testing.assert_array_equal(values, values.astype(np.float32))
    np.testing.assert_array_equal(f.shift, layer().running_mean)


def test_it_knows_its_dtype_channels_and_axis():
    f = layer(7, dtype="float64", channels_last=True).fuse()
    assert (f.dtype, f.num_features, f.axis) == (np.float64, 7, -1)
    assert repr(f) == "ScaleShift(7, dtype='float64', axis=-1)"


def test_it_does_not_change_with_the_layer():
    bn, x = layer(), oracles.array((3, 5))
    f = bn.fuse()
    before = f(x)
    bn.weight[...] = 0
    bn.train()(x)
    np.testing.assert_array_equal(f(x), before)


def test_it_cannot_be_changed():
    f = layer().fuse()
    with pytest.raises(ValueError, match="read-only"):
        f.scale[0] = 2
    for name in ("shift", "scale", "bias", "dtype", "axis", "num_features", "new"):
        with pytest.raises(AttributeError):
            setattr(f, name, None)


def test_its_coefficients_are_not_made_writable_through_the_array_they_view():
    scale = layer().fuse().scale
    with pytest.raises(ValueError, match="WRITEABLE"):
        scale.flags.writeable = True


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
)
def test_a_copy_computes_the_same(duplicate):
    f, x = layer().fuse(), oracles.array((3, 5))
    np.testing.assert_array_equal(duplicate(f)(x), f(x))


def test_it_can_be_made_from_arrays():
    f = cbn.ScaleShift(np.array([1.0]), np.array([2.0]), np.array([3.0]), dtype="float64")
    np.testing.assert_array_equal(f(np.array([[5.0], [0.0]])), [[11], [1]])


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, np.float32, np.float64],
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_runs_of_many_lengths_end_where_they_end(dtype, with_residual):
    work = np.promote_types(dtype, np.float32)
    m, a, b = (oracles.array((5,), work, seed) for seed in range(3))
    fused = cbn.ScaleShift(m, a, b, dtype=dtype)
    for length in [*range(1, 80), 127, 128, 129, 200, 255, 256, 257]:
        x = oracles.array((3, 5, length), np.float64).astype(dtype)
        residual = oracles.array(x.shape, np.float64, 4).astype(dtype) if with_residual else None
        expected = (x.astype(work) - m[:, None]) * a[:, None] + b[:, None]
        if residual is not None:
            expected += residual.astype(work)
        expected = expected.astype(dtype)
        room = np.full(x.size + 32, 7, dtype)
        inside = room[16:-16].reshape(x.shape)
        fused(x, out=inside, residual=residual)
        np.testing.assert_array_equal(inside, expected)
        inside[...] = x
        fused(inside, out=inside, residual=residual)
        np.testing.assert_array_equal(inside, expected)
        if residual is not None:
            inside[...] = residual
            fused(x, out=inside, residual=inside)
            np.testing.assert_array_equal(inside, expected)
        assert (room[:16] == 7).all()
        assert (room[-16:] == 7).all()


def test_out_may_be_x():
    f, x = layer().fuse(), oracles.array((3, 5))
    expected = f(x)
    assert f(x, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((2, 5)), TypeError, "x: expected float32, got float64"),
        (
            np.ones((2, 5), int),
            TypeError,
            "x: expected float16, .* or float64, got int64",
        ),
        (np.ones((2, 4), np.float32), ValueError, "x: expected 5 channels on axis 1"),
        (np.ones(5, np.float32), ValueError, "x: expected at least 2 dimensions"),
        (np.ones((0, 5), np.float32), ValueError, "x: expected at least one value"),
    ],
)
def test_what_it_cannot_take_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        layer().fuse()(x)


def test_a_layer_without_running_statistics_cannot_be_fused():
    with pytest.raises(ValueError, match="track_running_stats is False"):
        cbn.BatchNorm1d(5, track_running_stats=False).fuse()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones(1), [1.0], np.ones(1)), TypeError, "scale: expected an array .* got list"),
        (
            (np.ones((1, 2)), np.ones(2), np.ones(2)),
            ValueError,
            r"shift: expected shape \(C,\), got \(1, 2\)",
        ),
        (
            (np.ones(2), np.ones(3), np.ones(2)),
            ValueError,
            r"scale: expected shape \(2,\), got \(3,\)",
        ),
        (
            (np.ones(2), np.ones(2), np.ones(2, int)),
            TypeError,
            "bias: expected a floating-point array",
        ),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cbn.ScaleShift(*arguments)
