"""Calls on contiguous arrays, of the layers in training and of the functions, are compiled:
BatchNormCall. What it does not serve goes the way that checks."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn
from cbn._arrays import compiled_call

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


@pytest.fixture
def checked(monkeypatch) -> Callable[..., Any]:
    """Calls a function of cbn that then goes the way that checks."""

    def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            for module in ("functional", "stats"):
                patch.setattr(f"cbn.{module}.compiled_call", lambda *arguments: None)
            return function(*arguments, **options)

    return call


@pytest.fixture
def compiled(monkeypatch) -> Callable[..., Any]:
    """Calls a function of cbn that must not go the way that checks."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the checked way was gone")

    def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            for name in ("functional.scale_shift", "functional.normalize_batch"):
                patch.setattr(f"cbn.{name}", fail)
            for name in ("functional.arrange", "stats.single"):
                patch.setattr(f"cbn.{name}", fail)
            return function(*arguments, **options)

    return call


DTYPES = ["float32", "float64", "float16", ml_dtypes.bfloat16]


@pytest.mark.parametrize("num_threads", [None, 1, 3])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(
    "shape", [shape for shapes in SHAPES.values() for shape in shapes], ids=str
)
def test_it_gives_the_bits_of_the_checked_way(shape, dtype, last, num_threads, checked):
    x = oracles.array(shape, dtype)
    x = oracles.channels_last(x) if last else x
    x = np.moveaxis(x, 1, -1) if last else x
    own = dtype if dtype == "float64" else "float32"
    bn = layer_for(shape, dtype=own, channels_last=last, num_threads=num_threads, momentum=0.3)
    mean, var = bn.running_mean.copy(), bn.running_var.copy()
    options = {"training": True, "momentum": 0.3, "axis": -1 if last else 1, "num_threads": 1}
    expected = checked(cbn.batch_norm, x, mean, var, bn.weight, bn.bias, **options)
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
def test_its_gradient_has_the_bits_of_the_checked_way(shape, dtype, last, checked):
    x, dy = (oracles.array(shape, dtype, seed) for seed in (0, 1))
    if last:
        x, dy = (np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in (x, dy))
    bn = layer_for(shape, dtype="float64" if dtype == "float64" else "float32", channels_last=last)
    bn(x)
    assert bn._attempt_gradient(dy, None) is not None
    wanted = checked(bn.backward, dy, x)
    for got, expected in zip(bn.backward(dy), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    out = dy.copy()
    assert bn.backward(out, out=out)[0] is out
    np.testing.assert_array_equal(out, bn.backward(dy)[0])


@pytest.mark.parametrize("out", [False, True], ids=["new", "out"])
@pytest.mark.parametrize("dy", [None, 1.0, "dy", [1.0], {}], ids=repr)
def test_a_gradient_of_what_is_no_array_is_refused(dy, out):
    x, ones = oracles.array((6, 5, 7)), np.ones(5)
    out = np.empty_like(x) if out else None
    bn = cbn.BatchNorm1d(5)
    bn(x)
    with pytest.raises(TypeError, match="dy: expected an array"):
        bn.backward(dy, out=out)
    call = compiled_call(x, 1, None, (None, None, ones, ones))
    assert call.gradient_of(dy, x, out, False) is None
    assert call.gradient(dy, x, out, np.ones((3, 5)), 1e-5) is None


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
    assert not bn._compiled_calls


def test_moments_of_another_size_are_not_read():
    bn, x = layer_for((5, 19, 7)), oracles.array((5, 19, 7))
    call = bn._compiled_call(x.dtype)
    for wrong in (np.zeros((3, 1)), np.zeros((3, 19), np.float32), None):
        assert call.gradient(x, x, None, wrong, 1e-5) is None
    assert call.gradient(x, x, None, np.ones((3, 19)), 1e-5) is not None


# ---- the functions -------------------------------------------------------------------------------


def parameters(channels: int, dtypes: str) -> list[np.ndarray | None]:
    """weight, bias, mean and variance, each of the type of a letter: f, d, or - for none."""
    return [
        None if kind == "-" else np.abs(oracles.array((channels,), np.dtype(kind), seed)) + 0.5
        for seed, kind in enumerate(dtypes)
    ]


def same(got: Any, expected: Any) -> None:
    """Assert that arrays, or tuples of them, have one type and the same bits."""
    if not isinstance(got, tuple):
        got, expected = (got,), (expected,)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtypes", ["ffff", "dddd", "fdfd", "--ff", "-fdd", "f-df"])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(7, 19), (5, 19, 7), (2, 64, 56, 56), (3, 4, 2, 2)], ids=str)
def test_functions_give_the_bits_of_the_checked_way(shape, dtype, last, dtypes, compiled, checked):
    x, dy = (oracles.array(shape, dtype, seed) for seed in (0, 1))
    if last:
        x, dy = (np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in (x, dy))
    axis = -1 if last else 1
    weight, bias, mean, var = parameters(shape[1], dtypes)
    arguments = (x, mean, var, weight, bias)
    same(*(way(cbn.batch_norm, *arguments, axis=axis) for way in (compiled, checked)))

    stats = [way(cbn.batch_stats, x, axis=axis) for way in (compiled, checked)]
    same(*((part.mean, part.m2, part.mean_low) for part in stats))

    arguments = (dy, x, weight, mean, var)
    for training in (False, True):
        options = {"training": training, "axis": axis}
        same(*(way(cbn.batch_norm_backward, *arguments, **options) for way in (compiled, checked)))

    def train() -> tuple[np.ndarray, ...]:
        moved = mean.copy(), var.copy()
        result = cbn.batch_norm(x, *moved, weight, bias, training=True, momentum=0.3, axis=axis)
        assert not np.array_equal(moved[0], mean)
        return result, *moved

    same(compiled(train), checked(train))


def test_training_without_running_statistics_is_compiled(compiled, checked):
    x = oracles.array((6, 5, 7))
    same(*(way(cbn.batch_norm, x, None, None, training=True) for way in (compiled, checked)))


def test_an_axis_as_long_as_the_last_is_not_taken_for_it():
    x, dy = (oracles.array((5, 3, 5), seed=seed) for seed in (0, 1))
    state = parameters(5, "ffff")
    moved = [np.ascontiguousarray(np.moveaxis(array, 0, 1)) for array in (x, dy)]
    result = cbn.batch_norm(x, *state[2:], *state[:2], axis=0)
    same(result, np.moveaxis(cbn.batch_norm(moved[0], *state[2:], *state[:2]), 1, 0))
    mean = cbn.batch_stats(moved[0]).mean
    np.testing.assert_allclose(cbn.batch_stats(x, axis=0).mean, mean, rtol=1e-12)
    dx = cbn.batch_norm_backward(dy, x, state[0], *state[2:], axis=0)[0]
    expected = cbn.batch_norm_backward(*moved[::-1], state[0], *state[2:])[0]
    np.testing.assert_allclose(dx, np.moveaxis(expected, 1, 0), rtol=1e-4, atol=1e-6)


def test_an_out_that_overlaps_dy_is_refused():
    memory, x = oracles.array((220,)), oracles.array((6, 5, 7))
    dy, out = memory[:210].reshape(x.shape), memory[10:].reshape(x.shape)
    bn, before = cbn.BatchNorm1d(5), memory.copy()
    bn(x)
    with pytest.raises(ValueError, match="out: overlaps dy"):
        bn.backward(dy, out=out)
    with pytest.raises(ValueError, match="out: overlaps dy"):
        cbn.batch_norm_backward(dy, x, None, np.zeros(5), np.ones(5), out=out)
    np.testing.assert_array_equal(memory, before)


def test_a_divisor_of_zero_is_refused():
    x = np.ones((6, 5, 7), np.float32)
    zeros = np.zeros(5)
    with pytest.raises(ValueError, match=r"running_var: expected values > 0 \(eps is 0\)"):
        cbn.batch_norm(x, zeros, zeros, eps=0)
    with pytest.raises(ValueError, match=r"variance of x: expected values > 0 \(eps is 0\)"):
        cbn.batch_norm(x, None, None, training=True, eps=0)
    bn = cbn.BatchNorm1d(5)
    bn(x)
    bn.eps = 0
    with pytest.raises(ValueError, match=r"variance of x: expected values > 0 \(eps is 0\)"):
        bn.backward(x)


def test_no_buffer_is_kept():
    x, dy, out = (oracles.array((6, 5, 7), seed=seed) for seed in range(3))
    state = parameters(5, "ffff")
    call, shorter = compiled_call(x, 1, None, tuple(state)), dy[1:]
    arrays = [x, dy, out, shorter, *state]
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(10):
        result, found, _ = call.train(x, out, 1e-5, 0.1)
        dx, gradients = call.gradient_of(dy, x, out, False)
        moments = call.moments(x)
        assert sys.getrefcount(found) == sys.getrefcount(gradients) == sys.getrefcount(moments) == 2
        assert call.gradient(dy, x, out, moments, 1e-5) is not None
        assert call.gradient(shorter, x, out, moments, 1e-5) is None
        assert call.train(x, shorter, 1e-5, 0.1) is None
        assert call.evaluate(x, out, 1e-5) is not None
        assert call.evaluate(x.astype(np.float64), out, 1e-5) is None
    del result, dx
    assert [sys.getrefcount(array) for array in arrays] == before


def test_threads_that_share_running_statistics_lose_no_update():
    x = oracles.array((2, 100_000))
    shared = [np.ones(100_000, np.float32) for _ in range(2)]
    alone = [array.copy() for array in shared]

    def train(running: list[np.ndarray], times: int) -> None:
        for _ in range(times):
            cbn.batch_norm(x, *running, training=True, momentum=0.01, num_threads=1)

    threads = [threading.Thread(target=train, args=(shared, 40)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    train(alone, 160)
    for got, expected in zip(shared, alone, strict=True):
        np.testing.assert_array_equal(got, expected)


def unaligned(values: np.ndarray) -> np.ndarray:
    memory = np.empty(values.nbytes + 1, np.uint8)
    array = memory[1:].view(values.dtype)
    array[...] = values
    return array


@pytest.mark.parametrize(
    "form",
    [
        lambda array: np.repeat(array, 2)[::2],
        lambda array: array.astype(np.float16),
        lambda array: array.astype(ml_dtypes.bfloat16),
        lambda array: array.astype(np.longdouble),
        unaligned,
        memoryview,
    ],
    ids=["strided", "float16", "bfloat16", "longdouble", "unaligned", "memoryview"],
)
@pytest.mark.parametrize("which", range(4), ids=["weight", "bias", "mean", "var"])
def test_parameters_that_it_does_not_serve_go_the_checked_way(which, form):
    x = oracles.array((6, 5, 7))
    state = [np.roll([0.5, 1.0, 1.5, 2.0, 4.0], places) for places in range(4)]  # in any type
    plain = cbn.batch_norm(x, *state[2:], *state[:2])
    gradient, *_ = cbn.batch_norm_backward(x, x, state[0], *state[2:])
    state[which] = form(state[which])
    call = compiled_call(x, 1, None, tuple(state))
    assert call.evaluate(x, None, 1e-5) is None
    assert call.train(x, None, 1e-5, 0.1) is None
    assert call.gradient_of(x, x, None, False) is None
    same(cbn.batch_norm(x, *state[2:], *state[:2]), plain)
    same(cbn.batch_norm_backward(x, x, state[0], *state[2:])[0], gradient)


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (4,), (6,), (5, 2), ()], ids=str)
@pytest.mark.parametrize("which", range(4), ids=["weight", "bias", "mean", "var"])
def test_parameters_of_another_shape_are_refused(which, shape):
    x = oracles.array((6, 5, 7))
    state = parameters(5, "ffff")
    state[which] = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=r"expected shape \(5,\)"):
        cbn.batch_norm(x, *state[2:], *state[:2])
    with pytest.raises(ValueError, match=r"expected shape \(5,\)"):
        cbn.batch_norm(x, *state[2:], *state[:2], training=True)
    if which != 1:
        with pytest.raises(ValueError, match=r"expected shape \(5,\)"):
            cbn.batch_norm_backward(x, x, state[0], *state[2:])


PLACES = {"running_mean": 0, "running_var": 20, "x": 40, "out": 220}  # within 400 values


@pytest.mark.parametrize("shift", [0, 3, -3], ids=["same", "after", "before"])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("running_mean", "running_var"),
        ("running_mean", "x"),
        ("running_mean", "out"),
        ("running_var", "x"),
        ("running_var", "out"),
    ],
)
def test_statistics_within_another_array_are_refused_and_nothing_is_written(name, other, shift):
    places = {**PLACES, name: PLACES[other] + shift}
    memory = np.abs(oracles.array((400,)))
    before = memory.copy()
    running = [memory[places[key] :][:5] for key in ("running_mean", "running_var")]
    x, out = (memory[places[key] :][:175].reshape(5, 5, 7) for key in ("x", "out"))
    with pytest.raises(ValueError, match=f"{name}: shares memory with {other}"):
        cbn.batch_norm(x, *running, training=True, out=out)
    np.testing.assert_array_equal(memory, before)
