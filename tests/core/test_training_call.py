"""A training forward of a contiguous array, and its gradient, are compiled: TrainingCall."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn

SHAPES = {
    2: [(7, 19), (300, 64)],
    3: [(5, 19, 7), (2, 3, 40_000)],
    4: [(3, 19, 7, 7), (2, 64, 56, 56), (4, 32, 2, 2)],
    5: [(2, 5, 3, 4, 5)],
}
LAYERS = {2: cbn.BatchNorm1d, 3: cbn.BatchNorm1d, 4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}


def layer_for(shape: tuple[int, ...], **options) -> cbn.BatchNorm1d:
    """A layer whose parameters are all different."""
    bn = LAYERS[len(shape)](shape[1], **options)
    for seed, name in enumerate(("weight", "bias", "running_mean", "running_var")):
        if getattr(bn, name) is not None:
            setattr(bn, name, np.abs(oracles.array((shape[1],), seed=seed)))
    return bn


def took_the_compiled_call(bn: cbn.BatchNorm1d, x: np.ndarray) -> bool:
    """Whether it would serve x."""
    return copy.deepcopy(bn)._attempt_training(x, None) is not None


DTYPES = ["float32", "float64", "float16", ml_dtypes.bfloat16]


@pytest.mark.parametrize("num_threads", [None, 1, 3])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(
    "shape", [shape for shapes in SHAPES.values() for shape in shapes], ids=str
)
def test_it_gives_the_bits_of_the_function(shape, dtype, last, num_threads):
    x = oracles.array(shape, dtype)
    x = oracles.channels_last(x) if last else x
    x = np.moveaxis(x, 1, -1) if last else x
    own = dtype if dtype == "float64" else "float32"
    bn = layer_for(shape, dtype=own, channels_last=last, num_threads=num_threads, momentum=0.3)
    mean, var = bn.running_mean.copy(), bn.running_var.copy()
    expected = cbn.batch_norm(
        x, mean, var, bn.weight, bn.bias, True, 0.3, axis=-1 if last else 1, num_threads=1
    )
    assert took_the_compiled_call(bn, x)
    result = bn(x)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(bn.running_mean, mean)
    np.testing.assert_array_equal(bn.running_var, var)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
def test_what_a_layer_lacks_is_not_touched(options):
    x = oracles.array((4, 5, 6))
    bn = layer_for(x.shape, **options)
    assert took_the_compiled_call(bn, x)
    np.testing.assert_array_equal(
        bn(x), cbn.batch_norm(x, None, None, bn.weight, bn.bias, training=True)
    )
    assert bn.num_batches_tracked == (None if "track_running_stats" in options else 1)


def test_without_momentum_all_batches_weigh_the_same():
    batches = [oracles.array((6, 5, 7), seed=seed) for seed in range(3)]
    bn = cbn.BatchNorm1d(5, momentum=None)
    for batch in batches:
        bn(batch)
    means = [cbn.batch_stats(batch).mean for batch in batches]
    np.testing.assert_allclose(bn.running_mean, np.mean(means, axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("assign", [False, True], ids=["in place", "assigned"])
def test_changed_parameters_are_used_from_the_next_call_on(assign):
    x = oracles.array((6, 5, 7))
    bn = cbn.BatchNorm1d(5)
    bn(x)
    if assign:
        bn.weight = np.full(5, 3.0)
        bn.running_mean = np.full(5, 100.0)
    else:
        bn.weight[:] = 3
        bn.running_mean[:] = 100
    np.testing.assert_array_equal(
        bn(x), cbn.batch_norm(x, None, None, np.full(5, 3.0), None, training=True)
    )
    assert (bn.running_mean > 80).all()


def test_other_options_are_used_from_the_next_call_on():
    x = oracles.array((6, 5, 5))
    bn = cbn.BatchNorm1d(5)
    bn(x)
    bn.eps, bn.channels_last, bn.momentum = 1.0, True, 1.0
    np.testing.assert_array_equal(
        bn(x), cbn.batch_norm(x, None, None, training=True, eps=1.0, axis=-1)
    )
    np.testing.assert_array_equal(
        bn.running_mean, cbn.batch_stats(x, axis=-1).mean.astype(np.float32)
    )


def test_in_place_and_into_out():
    x = oracles.array((6, 5, 7))
    expected = cbn.BatchNorm1d(5)(x)
    out = np.empty_like(x)
    assert cbn.BatchNorm1d(5)(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    bn, own = cbn.BatchNorm1d(5), x.copy()
    assert bn(own, out=own) is own
    np.testing.assert_array_equal(own, expected)
    with pytest.raises(ValueError, match="x: expected an array"):
        bn.backward(x)  # its input is gone


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(
    "shape", [shape for shapes in SHAPES.values() for shape in shapes], ids=str
)
def test_its_gradient_has_the_bits_of_the_function(shape, dtype, last):
    x, dy = (oracles.array(shape, dtype, seed) for seed in (0, 1))
    if last:
        x, dy = (np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in (x, dy))
    bn = layer_for(shape, dtype="float64" if dtype == "float64" else "float32", channels_last=last)
    bn(x)
    assert bn._attempt_gradient(dy, None) is not None
    for got, expected in zip(bn.backward(dy), bn.backward(dy, x), strict=True):
        np.testing.assert_array_equal(got, expected)
    out = dy.copy()
    assert bn.backward(out, out=out)[0] is out
    np.testing.assert_array_equal(out, bn.backward(dy)[0])


def test_a_wrong_gradient_is_refused_as_before():
    x = oracles.array((6, 5, 7))
    bn = cbn.BatchNorm1d(5)
    bn(x)
    with pytest.raises(ValueError, match="dy: expected shape"):
        bn.backward(np.ones((6, 5, 8), np.float32))
    with pytest.raises(TypeError, match="dy: expected float32, like x, got float64"):
        bn.backward(np.ones((6, 5, 7)))
    frozen = np.empty_like(x)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writable array"):
        bn.backward(x, out=frozen)


def test_a_layer_of_16_bit_parameters_takes_the_checked_way():
    x = oracles.array((6, 5, 7), np.float16)
    bn = cbn.BatchNorm1d(5, dtype="float16")
    assert not took_the_compiled_call(bn, x)
    np.testing.assert_array_equal(bn(x), cbn.batch_norm(x, None, None, training=True))


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (np.ones((1, 5, 1), np.float32), None, "more than 1 value per channel"),
        (np.ones((4, 6, 2), np.float32), None, "expected 5 channels"),
        (np.ones((4, 5, 2), np.float32), np.ones((4, 5, 3), np.float32), "out: expected shape"),
        (np.ones((4, 5, 2), np.float32), np.ones((4, 5, 2)), "out: expected float32"),
        (np.ones((4, 5, 2), np.int32), None, "expected float16"),
        (np.ones((0, 5, 2), np.float32), None, "at least one value"),
        (np.ones((4, 5), np.float32)[:, ::-1], np.ones(3), "out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failed_call_changes_nothing(x, out, message):
    bn = layer_for((4, 5, 2))
    before = bn.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        bn(x, out=out)
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_an_out_that_overlaps_is_refused_as_before():
    memory = oracles.array((70,))
    x, out = memory[:60].reshape(4, 5, 3), memory[10:].reshape(4, 5, 3)
    bn = cbn.BatchNorm1d(5)
    with pytest.raises(ValueError, match="out: overlaps x"):
        bn(x, out=out)
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize(
    "remake", [copy.deepcopy, copy.copy, lambda bn: pickle.loads(pickle.dumps(bn))]
)
def test_a_copy_makes_a_call_of_its_own(remake):
    x = oracles.array((6, 5, 7))
    bn = cbn.BatchNorm1d(5)
    bn(x)
    other = remake(bn)
    other.running_mean = np.full(5, 9.0)
    own = bn.running_mean.copy()
    other(x)
    np.testing.assert_array_equal(bn.running_mean, own)
    assert (other.running_mean > 8).all()


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("before", [0, 1], ids=["first call", "later call"])
def test_read_only_statistics_are_refused_and_nothing_is_written(name, before):
    x = oracles.array((6, 5, 7))
    bn = cbn.BatchNorm1d(5)
    for _ in range(before):
        bn(x)
    getattr(bn, name).flags.writeable = False
    state, out = bn.state_dict(), np.zeros_like(x)
    with pytest.raises(ValueError, match=f"{name}: expected a writable array, got a read-only one"):
        bn(x, out=out)
    assert not out.any()
    for key, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, state[key])


def test_calls_on_foreign_dtypes_leave_nothing_behind():
    bn = cbn.BatchNorm1d(5)
    for size in range(1, 20):
        with pytest.raises(TypeError, match="x: expected float16"):
            bn(np.zeros((2, 5), f"S{size}"))
    assert not bn._training_calls


def test_moments_of_another_size_are_not_read():
    bn, x = layer_for((5, 19, 7)), oracles.array((5, 19, 7))
    call = bn._training_call(x.dtype)
    for wrong in (np.zeros((3, 1)), np.zeros((3, 19), np.float32)):
        assert call.gradient(x, x, None, wrong, 1e-5) is None
    assert call.gradient(x, x, None, np.ones((3, 19)), 1e-5) is not None
