"""What a layer keeps between calls in eval: seen by nobody, whatever changes in between."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest

import cbn

LAYERS = {2: cbn.BatchNorm1d, 3: cbn.BatchNorm1d, 4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}
each_dtype = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
X = oracles.array((4, 3, 5))
PARAMETERS = ("weight", "bias", "running_mean", "running_var")


def warm(dtype: str = "float32", **options) -> cbn.BatchNorm1d:
    """A layer in eval that has been called with X before."""
    bn = cbn.BatchNorm1d(3, dtype=dtype, **options)
    for seed, name in enumerate(PARAMETERS):
        if getattr(bn, name) is not None:
            setattr(bn, name, np.abs(oracles.array((3,), seed=seed)) + 0.5)
    bn.eval()
    for _ in range(2):
        bn(X.astype(dtype))
    return bn


def from_scratch(bn: cbn.BatchNorm1d, x: np.ndarray) -> np.ndarray:
    """What the layer's present state gives, by way of the function."""
    axis = -1 if bn.channels_last else 1
    state = bn.running_mean, bn.running_var, bn.weight, bn.bias
    return cbn.batch_norm(x, *state, eps=bn.eps, axis=axis)


@each_dtype
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 3), (40, 3), (2, 3, 7), (2, 3, 40), (2, 3, 4, 5), (2, 3, 2, 2, 2)], ids=str
)
def test_later_calls_give_the_bits_of_the_first(shape, channels_last, dtype):
    bn = LAYERS[len(shape)](3, dtype=dtype, channels_last=channels_last).eval()
    bn.load_state_dict(warm(dtype).state_dict())
    x = oracles.array(shape, dtype)
    if channels_last:
        x = np.moveaxis(x, 1, -1).copy()
    first = bn(x)
    np.testing.assert_array_equal(first, from_scratch(bn, x))
    for _ in range(2):
        np.testing.assert_array_equal(bn(x), first)
    out = np.empty_like(x)
    assert bn(x, out=out) is out
    np.testing.assert_array_equal(out, first)
    np.testing.assert_array_equal(bn(np.repeat(x, 2, -1)[..., ::2]), first)
    assert bn(x, out=x) is x
    np.testing.assert_array_equal(x, first)


@each_dtype
@pytest.mark.parametrize("name", PARAMETERS)
class TestAParameterIsSeen:
    def test_changed_in_place(self, name, dtype):
        bn, x = warm(dtype), X.astype(dtype)
        before = bn(x)
        getattr(bn, name)[0] = 3
        after = bn(x)
        assert not np.array_equal(after[:, 0], before[:, 0])
        np.testing.assert_array_equal(after[:, 1:], before[:, 1:])
        np.testing.assert_array_equal(after, from_scratch(bn, x))
        np.testing.assert_array_equal(bn(x), after)

    def test_changed_through_a_view(self, name, dtype):
        bn, x = warm(dtype), X.astype(dtype)
        getattr(bn, name)[::2] += 1
        np.testing.assert_array_equal(bn(x), from_scratch(bn, x))

    def test_changed_and_changed_back(self, name, dtype):
        bn, x = warm(dtype), X.astype(dtype)
        before, kept = bn(x), getattr(bn, name).copy()
        getattr(bn, name)[1] = 7
        bn(x)
        getattr(bn, name)[...] = kept
        np.testing.assert_array_equal(bn(x), before)

    def test_set(self, name, dtype):
        bn, x = warm(dtype), X.astype(dtype)
        setattr(bn, name, np.array([1.5, 2.5, 3.5]))
        np.testing.assert_array_equal(bn(x), from_scratch(bn, x))
        getattr(bn, name)[2] = 9  # the new array is watched as well
        np.testing.assert_array_equal(bn(x), from_scratch(bn, x))


@each_dtype
@pytest.mark.parametrize(
    "change",
    [
        lambda bn: setattr(bn, "eps", 0.5),
        lambda bn: bn.load_state_dict(cbn.BatchNorm1d(3).state_dict()),
        lambda bn: bn.reset_parameters(),
        lambda bn: bn.reset_running_stats(),
        lambda bn: bn.track(cbn.batch_stats(5 * X)),
        lambda bn: bn.train()(7 * X) is None or bn.eval(),
        lambda bn: setattr(bn, "num_threads", 2),
    ],
    ids=["eps", "load_state_dict", "reset", "reset_running_stats", "track", "train", "threads"],
)
def test_so_is_every_other_change(change, dtype):
    bn, x = warm(dtype), X.astype(dtype)
    change(bn)
    np.testing.assert_array_equal(bn(x), from_scratch(bn, x))


def test_a_change_of_layout_is_seen():
    bn, x = warm(), oracles.array((4, 3, 3))
    bn(x)
    bn.channels_last = True
    np.testing.assert_array_equal(bn(x), from_scratch(bn, x))


def test_calls_with_other_dtypes_in_between_are_served():
    bn = warm()
    inputs = [X.astype(dtype) for dtype in ("float32", "float64", "float16", "float32")]
    for x in inputs * 2:
        y = bn(x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, from_scratch(bn, x))


@pytest.mark.parametrize("affine", [True, False])
def test_training_in_between_is_training(affine):
    bn, fresh = warm(affine=affine), cbn.BatchNorm1d(3, affine=affine)
    fresh.load_state_dict(bn.state_dict())
    np.testing.assert_array_equal(bn.train()(X), fresh(X))
    np.testing.assert_array_equal(bn.eval()(X), fresh.eval()(X))


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_a_variance_that_turns_bad_is_refused_and_a_good_one_taken_again(bad):
    bn = warm()
    before, kept = bn(X), bn.running_var[1]
    bn.running_var[1] = bad
    for _ in range(2):
        with pytest.raises(ValueError, match="running_var: expected values >= 0"):
            bn(X)
    bn.running_var[1] = kept
    np.testing.assert_array_equal(bn(X), before)


REFUSED = {
    "rank": (np.ones((2, 3, 4, 5), np.float32), None, ValueError, "expected 2D or 3D input"),
    "channels": (np.ones((2, 4), np.float32), None, ValueError, "expected 3 channels on axis 1"),
    "dtype": (np.ones((2, 3), int), None, TypeError, "x: expected float16"),
    "empty": (np.ones((0, 3), np.float32), None, ValueError, "x: expected at least one value"),
    "out": (X, np.ones((4, 3), np.float32), ValueError, "out: expected shape"),
    "overlap": (X, X[::-1], ValueError, "out: overlaps x"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_warm_layer_checks_as_a_cold_one(reason):
    x, out, error, message = REFUSED[reason]
    bn = warm()
    with pytest.raises(error, match=message):
        bn(x, out=out)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
@each_dtype
def test_a_copy_is_a_layer_of_its_own(dtype, duplicate):
    bn, x = warm(dtype), X.astype(dtype)
    before = bn(x)
    other = duplicate(bn)
    np.testing.assert_array_equal(other(x), before)
    other.running_mean[0] = 3
    np.testing.assert_array_equal(other(x), from_scratch(other, x))
    np.testing.assert_array_equal(bn(x), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_a_copy_has_not_been_trained(duplicate):
    bn = cbn.BatchNorm1d(3)
    bn(X)
    with pytest.raises(ValueError, match="no training forward"):
        duplicate(bn).backward(X)
    assert bn.backward(X)[0].shape == X.shape


@pytest.mark.parametrize("bad", [0, -2])
def test_a_number_of_threads_is_checked_when_it_is_set(bad):
    bn = warm()
    with pytest.raises(ValueError, match="num_threads: expected None or an int >= 1"):
        bn.num_threads = bad
    assert bn.num_threads is None


def test_eight_threads_may_call_a_layer_in_eval():
    bn = warm()
    inputs = [oracles.array((400, 3, 5), seed=seed) for seed in range(8)]
    expected = [bn(x) for x in inputs]

    def call(at: int) -> bool:
        return all(np.array_equal(bn(inputs[at]), expected[at]) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))
