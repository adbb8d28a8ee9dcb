"""`batch_norm`: what it does to its arguments, in training and in eval."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbn

X = oracles.array((8, 5, 6))


def state(dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    return oracles.array((5,), dtype, seed=1), np.abs(oracles.array((5,), dtype, seed=2))


@given(oracles.inputs(), st.floats(0, 1))
def test_running_statistics_move_by_momentum_towards_mean_and_sample_variance(drawn, momentum):
    x, axis = drawn
    channels = x.shape[axis]
    mean, var = np.full(channels, 0.5), np.full(channels, 2.0)
    cbn.batch_norm(x, mean, var, training=True, momentum=momentum, axis=axis)
    exact = oracles.statistics(x, axis)
    sample_var = exact.var * exact.count / (exact.count - 1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(
        mean, oracles.running(np.full(channels, 0.5), exact.mean, momentum).astype(float), **close
    )
    np.testing.assert_allclose(
        var, oracles.running(np.full(channels, 2.0), sample_var, momentum).astype(float), **close
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_running_statistics_are_rounded_once(dtype):
    mean, var = state(dtype)
    exact = oracles.statistics(X)
    expected = oracles.running(mean, exact.mean, 0.1).astype(dtype)
    cbn.batch_norm(X, mean, var, training=True)
    assert mean.dtype == dtype
    # the float64 steps before that one rounding may tip it over, by one ULP at most
    assert np.all(np.abs(mean - expected) <= np.spacing(np.abs(expected)))


def test_momentum_one_takes_the_batch_and_zero_keeps_the_old():
    mean, var = state(np.float64)
    before = mean.copy(), var.copy()
    cbn.batch_norm(X, mean, var, training=True, momentum=0)
    np.testing.assert_array_equal((mean, var), before)
    cbn.batch_norm(X, mean, var, training=True, momentum=1)
    stats = cbn.batch_stats(X)
    np.testing.assert_array_equal((mean, var), (stats.mean, stats.unbiased_var))


def test_training_normalizes_with_the_batch_whatever_the_running_statistics():
    y = cbn.batch_norm(X, *state(), training=True)
    np.testing.assert_array_equal(y, cbn.batch_norm(X, None, None, training=True))


def test_eval_uses_the_running_statistics_and_leaves_them():
    mean, var = state()
    before = mean.copy(), var.copy()
    y = cbn.batch_norm(X, mean, var)
    assert oracles.ulp_error(y, X, mean, var) <= oracles.MAX_ULP
    np.testing.assert_array_equal((mean, var), before)


def test_eval_takes_read_only_statistics():
    mean, var = state()
    mean.flags.writeable = var.flags.writeable = False
    assert np.isfinite(cbn.batch_norm(X, mean, var)).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, False)])
def test_an_absent_weight_is_one_and_an_absent_bias_zero(weight, bias, training):
    given = oracles.array((5,), seed=3)
    full = given if weight else np.ones(5, np.float32), given if bias else np.zeros(5, np.float32)
    some = given if weight else None, given if bias else None
    np.testing.assert_array_equal(
        cbn.batch_norm(X, *state(), *some, training), cbn.batch_norm(X, *state(), *full, training)
    )


def test_parameters_may_be_of_another_float_type_than_x():
    mean, var = state(np.float64)
    half = np.array([0.5, 1, 2, -1, 0], np.float16)
    y = cbn.batch_norm(X, mean, var, half, half)
    assert y.dtype == np.float32
    # the mean is rounded to float32 with x's arithmetic, and the rounding carried into b
    assert oracles.ulp_error(y, X, mean, var, half, half) <= oracles.MAX_ULP


@pytest.mark.parametrize("training", [True, False])
def test_eps_is_added_under_the_root(training):
    x = np.array([[0.0], [2.0]])  # variance 1
    y = cbn.batch_norm(x, np.ones(1), np.ones(1), training=training, eps=3.0)
    np.testing.assert_array_equal(y, [[-0.5], [0.5]])


@pytest.mark.parametrize("training", [True, False])
def test_eps_zero_is_taken_where_it_divides_by_nothing_that_is_zero(training):
    x = np.array([[0.0], [2.0]])
    y = cbn.batch_norm(x, np.ones(1), np.ones(1), training=training, eps=0)
    np.testing.assert_array_equal(y, [[-1], [1]])


def test_channels_on_another_axis_give_the_same_values():
    moved = np.moveaxis(X, 1, -1)
    y = cbn.batch_norm(moved, *state(), training=True, axis=-1)
    np.testing.assert_array_equal(np.moveaxis(y, -1, 1), cbn.batch_norm(X, *state(), training=True))


def test_the_result_is_a_new_array_of_the_dtype_of_x():
    for dtype in (np.float32, np.float64):
        x = X.astype(dtype)
        y = cbn.batch_norm(x, *state())
        assert y.dtype == dtype
        assert not np.may_share_memory(x, y)


def test_two_values_per_channel_are_enough_to_train():
    y = cbn.batch_norm(np.array([[1.0], [3.0]]), None, None, training=True, eps=0)
    np.testing.assert_array_equal(y, [[-1], [1]])
