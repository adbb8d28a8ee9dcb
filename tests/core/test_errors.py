"""Bad input: one clear error that names the thing and what is accepted, and nothing changed."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn

GOOD = oracles.array((4, 3, 5, 6))

RANKS = [
    (cbn.BatchNorm1d, (3,), r"expected 2D or 3D input \(N, C\) or \(N, C, L\), got 1D \(3,\)"),
    (cbn.BatchNorm1d, (2, 3, 4, 5), r"expected 2D or 3D input .* got 4D \(2, 3, 4, 5\)"),
    (cbn.BatchNorm2d, (8, 3, 56), r"expected 4D input \(N, C, H, W\), got 3D \(8, 3, 56\)"),
    (cbn.BatchNorm3d, (8, 3, 5, 6), r"expected 5D input \(N, C, D, H, W\), got 4D \(8, 3, 5, 6\)"),
]

DTYPES = {
    "integer": (np.ones((4, 3, 5, 6), int), "got int64"),
    "bool": (np.ones((4, 3, 5, 6), bool), "got bool"),
    "object": (np.ones((4, 3, 5, 6), object), "got object"),
    "complex": (np.ones((4, 3, 5, 6), complex), "got complex128"),
    "text": (np.full((4, 3, 5, 6), "1"), "got <U1"),
    "long double": (np.ones((4, 3, 5, 6), np.longdouble), f"got {np.dtype(np.longdouble)}"),
    "other byte order": (GOOD.astype(">f4"), "got >f4"),
    "float8": (np.ones((4, 3, 5, 6), ml_dtypes.float8_e4m3fn), "got float8_e4m3fn"),
}


def assert_refused(bn, x, error, message) -> None:
    """Calling bn on x raises, in training and in eval, and leaves its state as it was."""
    for mode in (True, False):
        before = bn.train(mode).state_dict()
        with pytest.raises(error, match=message):
            bn(x)
        for name, value in bn.state_dict().items():
            np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(("layer", "shape", "message"), RANKS)
def test_wrong_rank(layer, shape, message):
    assert_refused(layer(3), np.ones(shape, np.float32), ValueError, message)


def test_wrong_rank_channels_last():
    message = r"expected 4D input \(N, H, W, C\), got 2D \(4, 3\)"
    bn = cbn.BatchNorm2d(3, channels_last=True)
    assert_refused(bn, np.ones((4, 3), np.float32), ValueError, message)


def test_wrong_channel_count():
    message = r"expected 5 channels on axis 1 of \(N, C, H, W\), got 3 in \(4, 3, 5, 6\)"
    assert_refused(cbn.BatchNorm2d(5), GOOD, ValueError, message)


def test_wrong_channel_count_channels_last():
    message = r"expected 5 channels on axis 3 of \(N, H, W, C\), got 6 in \(4, 3, 5, 6\)"
    assert_refused(cbn.BatchNorm2d(5, channels_last=True), GOOD, ValueError, message)


@pytest.mark.parametrize("kind", DTYPES)
def test_wrong_dtype(kind):
    x, got = DTYPES[kind]
    assert_refused(
        cbn.BatchNorm2d(3),
        x,
        TypeError,
        f"x: expected float16, .* or float64, {got}",
    )
    with pytest.raises(TypeError, match=got):
        cbn.batch_stats(x)


@pytest.mark.parametrize("value", [[[1.0, 2.0]], 3.0, None, "text", {}])
def test_what_is_no_array(value):
    assert_refused(cbn.BatchNorm1d(2), value, TypeError, "x: expected an array")


@pytest.mark.parametrize("shape", [(0, 3, 5, 6), (4, 3, 0, 6)])
def test_no_value_at_all(shape):
    x, message = np.ones(shape, np.float32), "x: expected at least one value"
    assert_refused(cbn.BatchNorm2d(3), x, ValueError, message)
    with pytest.raises(ValueError, match=message):
        cbn.batch_stats(x)


def test_no_channel_at_all():
    for training in (True, False):
        with pytest.raises(ValueError, match="x: expected at least one value"):
            cbn.batch_norm(np.ones((4, 0)), np.ones(0), np.ones(0), training=training)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(cbn.BatchNorm1d, (1, 3)), (cbn.BatchNorm1d, (1, 3, 1)), (cbn.BatchNorm2d, (1, 3, 1, 1))],
)
def test_one_value_per_channel_in_training_alone(layer, shape):
    bn, x = layer(3), np.ones(shape, np.float32)
    before = bn.state_dict()
    with pytest.raises(ValueError, match="expected more than 1 value per channel in training"):
        bn(x)
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert bn.eval()(x).shape == shape


@pytest.mark.parametrize("bad", [-1e-3, np.nan, -np.inf])
def test_a_running_var_that_is_no_variance(bad):
    bn = cbn.BatchNorm2d(3).eval()
    bn.running_var[2] = bad
    for call in (
        lambda: bn(GOOD),
        bn.fuse,
        lambda: cbn.batch_norm(GOOD, np.zeros(3), bn.running_var),
    ):
        with pytest.raises(
            ValueError, match=r"running_var: expected values >= 0, got .* at channel 2"
        ):
            call()


def test_eps_zero_over_a_running_var_of_zero():
    bn = cbn.BatchNorm2d(3, eps=0).eval()
    bn.running_var[...] = [1, 0, 0]
    message = r"running_var: expected values > 0 \(eps is 0\), got 0.0 at channel 1 \(2 channels"
    for call in (lambda: bn(GOOD), bn.fuse):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("in_place", [True, False])
def test_eps_zero_over_a_batch_without_variance(in_place):
    x = GOOD.copy()
    x[:, 1] = 4
    given, bn = x.copy(), cbn.BatchNorm2d(3, eps=0)
    before = bn.state_dict()
    with pytest.raises(ValueError, match=r"variance of x: .* got 0.0 at channel 1"):
        bn(x, out=x if in_place else None)
    np.testing.assert_array_equal(x, given)
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("bad", [-1e-5, np.nan, np.inf])
def test_eps_out_of_range(bad):
    for call in (
        lambda: cbn.BatchNorm2d(3, eps=bad),
        lambda: cbn.batch_norm(GOOD, None, None, training=True, eps=bad),
        lambda: setattr(cbn.BatchNorm2d(3), "eps", bad),
    ):
        with pytest.raises(ValueError, match="eps: expected a finite number >= 0, got"):
            call()


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_momentum_out_of_range(bad):
    for call in (
        lambda: cbn.BatchNorm2d(3, momentum=bad),
        lambda: cbn.batch_norm(GOOD, np.zeros(3), np.ones(3), training=True, momentum=bad),
    ):
        with pytest.raises(ValueError, match="momentum: expected a number from 0 to 1"):
            call()


@pytest.mark.parametrize("name", ["eps", "momentum"])
@pytest.mark.parametrize("bad", ["0.1", [0.1]])
def test_eps_and_momentum_that_are_no_numbers(name, bad):
    with pytest.raises(TypeError, match=f"{name}: expected a number"):
        cbn.BatchNorm2d(3, **{name: bad})


@pytest.mark.parametrize(
    ("bad", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError), ("3", TypeError)]
)
def test_num_features(bad, error):
    with pytest.raises(error, match="num_features: expected an int"):
        cbn.BatchNorm2d(bad)


@pytest.mark.parametrize("bad", ["float8", "int32", object, np.longdouble, 3, None])
def test_dtype_of_a_layer(bad):
    with pytest.raises(TypeError, match=r"dtype: expected float16, .* or float64, got"):
        cbn.BatchNorm2d(3, dtype=bad)


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="dtype: bfloat16 needs the package ml_dtypes"):
        cbn.BatchNorm2d(3, dtype="bfloat16")


PARAMETERS = ["running_mean", "running_var", "weight", "bias"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.ones(4), ValueError, r"expected shape \(3,\), got \(4,\)"),
        (np.ones((1, 3)), ValueError, r"expected shape \(3,\), got \(1, 3\)"),
        (
            np.ones(3, int),
            TypeError,
            "expected a floating-point array in native byte order, got int64",
        ),
        (
            np.ones(3, complex),
            TypeError,
            "expected a floating-point array in native byte order, got complex128",
        ),
        ([1.0, 1.0, 1.0], TypeError, "expected an array .* got list"),
    ],
)
def test_parameters_of_batch_norm(name, bad, error, message, training):
    given = {key: np.ones(3) for key in PARAMETERS} | {name: bad}
    with pytest.raises(error, match=f"{name}: {message}"):
        cbn.batch_norm(GOOD, training=training, **given)
    for key in PARAMETERS:
        np.testing.assert_array_equal(given[key], np.ones_like(given[key]))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_a_layer(name):
    bn = cbn.BatchNorm2d(3)
    before = getattr(bn, name).copy()
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(3,\), got \(2,\)"):
        setattr(bn, name, np.ones(2))
    np.testing.assert_array_equal(getattr(bn, name), before)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_read_only_running_statistics_in_training(name):
    given = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
    given[name].flags.writeable = False
    before = {key: value.copy() for key, value in given.items()}
    with pytest.raises(ValueError, match=f"{name}: expected a writable array, got a read-only one"):
        cbn.batch_norm(GOOD, **given, training=True)
    for key, value in given.items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize(("mean", "var"), [(None, np.ones(3)), (np.zeros(3), None)])
def test_one_running_statistic_without_the_other(mean, var):
    with pytest.raises(
        ValueError, match=r"is given and running_.* is not; expected both or neither"
    ):
        cbn.batch_norm(GOOD, mean, var, training=True)


def test_eval_without_running_statistics():
    with pytest.raises(
        ValueError, match="running_mean, running_var: expected arrays unless training"
    ):
        cbn.batch_norm(GOOD, None, None)


@pytest.mark.parametrize("axis", [4, -5])
def test_an_axis_that_x_lacks(axis):
    with pytest.raises(ValueError, match=f"axis: expected -4 to 3 for 4 dimensions, got {axis}"):
        cbn.batch_stats(GOOD, axis=axis)


@pytest.mark.parametrize("axis", [1.0, None, "1", (0, 1)])
def test_an_axis_that_is_no_int(axis):
    with pytest.raises(TypeError, match="axis: expected an int, got"):
        cbn.batch_norm(GOOD, None, None, training=True, axis=axis)


def test_one_dimension():
    for call in (
        lambda: cbn.batch_stats(np.ones(3), axis=0),
        lambda: cbn.batch_norm(np.ones(3), None, None, training=True, axis=0),
    ):
        with pytest.raises(ValueError, match=r"x: expected at least 2 dimensions \(N, C\), got 1"):
            call()


def test_the_base_class_is_not_a_layer():
    from cbn.layers import BatchNorm

    with pytest.raises(TypeError, match="use BatchNorm1d, BatchNorm2d or BatchNorm3d"):
        BatchNorm(3)


def test_masked_arrays_are_refused():
    x = np.ma.array(np.ones((4, 3), np.float32), mask=np.eye(4, 3, dtype=bool))
    with pytest.raises(TypeError, match="x: a masked array is not accepted"):
        cbn.batch_stats(x)
    f = cbn.BatchNorm1d(3).fuse()
    with pytest.raises(TypeError, match="x: a masked array is not accepted"):
        f(x, np.empty((4, 3), np.float32))


def test_bfloat16_of_another_byte_order_is_refused():
    dtype = np.dtype(ml_dtypes.bfloat16).newbyteorder()
    with pytest.raises(TypeError, match="x: expected float16, bfloat16, float32 or float64"):
        cbn.batch_stats(np.zeros((4, 3), ml_dtypes.bfloat16).astype(dtype))


@pytest.mark.parametrize("bad", ["no", "", 1, 0, None, np.ones(3)], ids=repr)
def test_what_is_neither_true_nor_false(bad):
    x, ones = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    for name in ("affine", "track_running_stats", "channels_last"):
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got"):
            cbn.BatchNorm1d(3, **{name: bad})
    with pytest.raises(TypeError, match="mode: expected True or False, got"):
        cbn.BatchNorm1d(3).train(bad)
    with pytest.raises(TypeError, match="training: expected True or False, got"):
        cbn.BatchNorm1d(3).training = bad
    with pytest.raises(TypeError, match="training: expected True or False, got"):
        cbn.batch_norm(x, ones, ones, training=bad)
    with pytest.raises(TypeError, match="training: expected True or False, got"):
        cbn.batch_norm_backward(x, x, None, ones, ones, training=bad)


def test_a_message_is_short_whatever_came():
    large = np.zeros((100, 100))
    for call in (
        lambda: cbn.BatchNorm1d(3, affine=large),
        lambda: cbn.BatchNorm1d(3, momentum=large),
        lambda: cbn.BatchNorm1d(3, dtype=large),
        lambda: cbn.ScaleShift(large[0], large[0], large[0], activation=large),
        lambda: cbn.ScaleShift(large[0], large[0], large[0], axis="y" * 10_000),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert len(str(caught.value)) < 150


def test_numpy_has_a_true_and_a_false_too():
    bn = cbn.BatchNorm1d(3, affine=np.False_, channels_last=np.True_)
    assert (bn.affine, bn.channels_last, bn.train(np.False_).training) == (False, True, False)


def test_arguments_that_are_missing_are_said_of_the_layer():
    with pytest.raises(TypeError, match=r"^BatchNorm\.__init__\(\) missing"):
        cbn.BatchNorm2d()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("running_mean", lambda x, out: (out[0], np.ones(3, np.float32))),
        ("running_var", lambda x, out: (np.zeros(3, np.float32), x[1])),
        ("running_mean", lambda x, out: (out[0],) * 2),
    ],
)
def test_running_statistics_within_another_array_are_refused(name, arguments):
    x, out = np.eye(4, 3, dtype=np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=f"{name}: shares memory with"):
        cbn.batch_norm(x, *arguments(x, out), training=True, out=out)
    assert (out == 1).all()
    assert (x == np.eye(4, 3)).all()


@pytest.mark.parametrize("bad", [10**400, np.zeros(2), "1"])
def test_what_is_no_number_is_named(bad):
    with pytest.raises(TypeError, match="eps: expected a number"):
        cbn.BatchNorm1d(3, eps=bad)
    with pytest.raises(TypeError, match="momentum: expected a number from 0 to 1"):
        cbn.BatchNorm1d(3, momentum=bad)
