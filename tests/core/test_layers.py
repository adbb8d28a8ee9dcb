"""BatchNorm1d, BatchNorm2d, BatchNorm3d: torch's layers and their state."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import oracles
import pytest

import cbn

LAYERS = [
    pytest.param(cbn.BatchNorm1d, (6, 5), id="1d-2D"),
    pytest.param(cbn.BatchNorm1d, (6, 5, 4), id="1d-3D"),
    pytest.param(cbn.BatchNorm2d, (6, 5, 4, 3), id="2d"),
    pytest.param(cbn.BatchNorm3d, (6, 5, 4, 3, 2), id="3d"),
]
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS)


def trained(**options) -> cbn.BatchNorm2d:
    """A layer of five channels that has seen a batch, and has its own weight and bias."""
    bn = cbn.BatchNorm2d(5, **options)
    if bn.affine:
        bn.weight, bn.bias = oracles.array((5,), seed=7), oracles.array((5,), seed=8)
    bn(oracles.array((6, 5, 4, 3)))
    return bn


def same_state(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(
        np.array_equal(first[name], second[name]) for name in first
    )


@each_layer
def test_defaults_are_those_of_torch(layer, shape):
    bn = layer(5)
    assert (bn.num_features, bn.eps, bn.momentum) == (5, 1e-5, 0.1)
    assert bn.affine is True
    assert bn.track_running_stats is True
    assert bn.training is True
    assert bn.num_batches_tracked == 0
    for name, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
        array = getattr(bn, name)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.full(5, value))


@each_layer
def test_training_uses_the_batch_and_moves_the_running_statistics(layer, shape):
    x, bn = oracles.array(shape), layer(5)
    mean, var = np.zeros(5, np.float32), np.ones(5, np.float32)
    expected = cbn.batch_norm(x, mean, var, training=True)
    np.testing.assert_array_equal(bn(x), expected)
    np.testing.assert_array_equal((bn.running_mean, bn.running_var), (mean, var))
    assert bn.num_batches_tracked == 1


@each_layer
def test_eval_uses_the_running_statistics_and_moves_nothing(layer, shape):
    x, bn = oracles.array(shape), layer(5)
    bn(x)
    before = copy.deepcopy(bn)
    y = bn.eval()(x)
    np.testing.assert_array_equal(y, cbn.batch_norm(x, bn.running_mean, bn.running_var))
    assert same_state(bn, before)


@each_layer
def test_channels_last_computes_the_same_values(layer, shape):
    x = oracles.array(shape)
    first, last = layer(5), layer(5, channels_last=True)
    for mode in (True, False):
        expected = first.train(mode)(x)
        got = last.train(mode)(np.moveaxis(x, 1, -1))
        np.testing.assert_allclose(np.moveaxis(got, -1, 1), expected, rtol=1e-5, atol=2e-6)


def test_train_and_eval_return_the_layer():
    bn = cbn.BatchNorm1d(3)
    assert bn.eval() is bn
    assert bn.training is False
    assert bn.train() is bn
    assert bn.training is True
    assert bn.train(False).training is False


def test_momentum_none_averages_all_batches():
    batches = [oracles.array((4, 5, 3, 2), np.float64, seed) for seed in range(7)]
    bn = cbn.BatchNorm2d(5, momentum=None, dtype="float64")
    for batch in batches:
        bn(batch)
    stats = [cbn.batch_stats(batch) for batch in batches]
    assert bn.num_batches_tracked == 7
    np.testing.assert_allclose(bn.running_mean, np.mean([s.mean for s in stats], 0), rtol=1e-13)
    np.testing.assert_allclose(
        bn.running_var, np.mean([s.unbiased_var for s in stats], 0), rtol=1e-13
    )


def test_without_affine_there_is_no_weight_and_no_bias():
    bn = trained(affine=False)
    assert bn.weight is None
    assert bn.bias is None
    assert list(bn.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]
    with pytest.raises(ValueError, match="weight: the layer was made with affine=False"):
        bn.weight = np.ones(5)


def test_without_running_statistics_eval_uses_the_batch():
    x = oracles.array((6, 5, 4, 3))
    bn = cbn.BatchNorm2d(5, track_running_stats=False)
    assert bn.running_mean is None
    assert bn.running_var is None
    assert bn.num_batches_tracked is None
    assert list(bn.state_dict()) == ["weight", "bias"]
    trained_output = bn(x)
    np.testing.assert_array_equal(bn.eval()(x), trained_output)
    with pytest.raises(
        ValueError, match="running_mean: the layer was made with track_running_stats"
    ):
        bn.running_mean = np.ones(5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_are_cast_to_the_dtype_of_the_layer(dtype):
    bn = cbn.BatchNorm1d(2, dtype=dtype)
    bn.weight = np.array([1, 2], np.float16)
    assert bn.weight.dtype == bn.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(bn.weight, [1, 2])


def test_a_parameter_that_is_set_is_copied():
    bn, given = cbn.BatchNorm1d(2), np.array([3, 4], np.float32)
    bn.running_mean = given
    bn(np.ones((4, 2), np.float32))
    np.testing.assert_array_equal(given, [3, 4])


def test_a_parameter_can_be_changed_in_place():
    bn = cbn.BatchNorm1d(2).eval()
    bn.weight[1] = 5
    y = bn(np.ones((1, 2)))
    np.testing.assert_allclose(y, [[1, 5]], rtol=1e-5)


class TestStateDict:
    def test_keys_are_torchs_in_its_order(self):
        assert list(trained().state_dict()) == [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ]

    def test_values_are_copies(self):
        bn = trained()
        before = copy.deepcopy(bn)
        for value in bn.state_dict().values():
            value[...] = 9
        assert same_state(bn, before)

    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("track", [True, False])
    def test_round_trip(self, affine, track):
        bn = trained(affine=affine, track_running_stats=track)
        other = cbn.BatchNorm2d(5, affine=affine, track_running_stats=track)
        other.load_state_dict(bn.state_dict())
        assert same_state(bn, other)

    def test_the_count_of_batches_is_one_int64(self):
        count = trained().state_dict()["num_batches_tracked"]
        assert (count.dtype, count.shape, int(count)) == (np.int64, (), 1)

    def test_loaded_values_are_copied_and_cast(self):
        state = {
            name: np.asarray(value, np.float64) for name, value in trained().state_dict().items()
        }
        state["num_batches_tracked"] = np.array(12)
        bn = cbn.BatchNorm2d(5)
        bn.load_state_dict(state)
        assert bn.weight.dtype == np.float32
        assert bn.num_batches_tracked == 12
        state["weight"][...] = 9
        assert not np.any(bn.weight == 9)

    def test_a_state_from_before_the_count_keeps_the_count(self):
        bn, state = trained(), trained().state_dict()
        del state["num_batches_tracked"]
        bn.load_state_dict(state)
        assert bn.num_batches_tracked == 1

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda s: s.pop("running_var"), ValueError, r"missing \['running_var'\]"),
            (lambda s: s.update(gamma=s["weight"]), ValueError, r"unexpected \['gamma'\]"),
            (
                lambda s: s.update(bias=np.ones(4)),
                ValueError,
                r"bias: expected shape \(5,\), got \(4,\)",
            ),
            (
                lambda s: s.update(running_mean=np.ones(5, int)),
                TypeError,
                "running_mean: expected a floating",
            ),
            (lambda s: s.update(running_var=None), TypeError, "running_var: expected an array"),
            (
                lambda s: s.update(num_batches_tracked=-1),
                ValueError,
                "num_batches_tracked: .* got -1",
            ),
            (
                lambda s: s.update(num_batches_tracked="3"),
                TypeError,
                "num_batches_tracked: expected one",
            ),
            (
                lambda s: s.update(num_batches_tracked=np.ones(2, int)),
                TypeError,
                "num_batches_tracked",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused_and_changes_nothing(self, change, error, message):
        bn = trained()
        before, state = copy.deepcopy(bn), cbn.BatchNorm2d(5).state_dict()
        change(state)
        with pytest.raises(error, match=message):
            bn.load_state_dict(state)
        assert same_state(bn, before)


def test_reset_running_stats_leaves_the_parameters():
    bn = trained()
    weight = bn.weight.copy()
    bn.reset_running_stats()
    np.testing.assert_array_equal((bn.running_mean, bn.running_var), (np.zeros(5), np.ones(5)))
    assert bn.num_batches_tracked == 0
    np.testing.assert_array_equal(bn.weight, weight)


def test_reset_parameters_makes_the_layer_new():
    bn = trained()
    bn.reset_parameters()
    assert same_state(bn, cbn.BatchNorm2d(5))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))]
)
def test_a_copy_has_the_same_state_and_computes_the_same(duplicate):
    bn = trained(momentum=None, dtype="float64").eval()
    other = duplicate(bn)
    assert same_state(bn, other)
    assert repr(bn) == repr(other)
    x = oracles.array((6, 5, 4, 3))
    np.testing.assert_array_equal(other(x), bn(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_a_deep_copy_shares_nothing(duplicate):
    bn = trained()
    before = bn.state_dict()
    duplicate(bn)(oracles.array((6, 5, 4, 3), seed=9))
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_repr_is_torchs_with_what_torch_does_not_have():
    assert repr(cbn.BatchNorm2d(64)) == (
        "BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    )
    shown = repr(cbn.BatchNorm1d(3, dtype="float64", channels_last=True))
    assert shown.endswith("dtype='float64', channels_last=True)")


def test_an_overflow_of_the_running_statistics_is_infinite_and_raises_nothing():
    bn = cbn.BatchNorm1d(1, dtype="float16")
    with np.errstate(all="raise"):
        bn(np.array([[1.0], [60000.0]], np.float32))
    assert bn.running_var == np.inf
    assert bn.num_batches_tracked == 1


def test_a_shallow_copy_has_attributes_of_its_own():
    bn, x = cbn.BatchNorm1d(3).eval(), np.ones((2, 3), np.float32)
    before = bn(x)
    twin = copy.copy(bn)
    twin.weight = np.full(3, 5, np.float32)
    np.testing.assert_array_equal(bn(x), before)
    np.testing.assert_array_equal(bn.weight, 1)


def test_load_state_dict_writes_into_the_arrays_that_are_there():
    bn = cbn.BatchNorm1d(3)
    held = bn.weight
    bn.load_state_dict({**bn.state_dict(), "weight": np.full(3, 2.0)})
    assert held is bn.weight
    np.testing.assert_array_equal(held, 2)


def test_num_batches_tracked_is_checked():
    with pytest.raises(TypeError, match="num_batches_tracked: expected one integer"):
        cbn.BatchNorm1d(3).num_batches_tracked = "x"
