"""The comparison of one node catches a wrong parameter, convention or sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracles
import pytest

import cbn
from cbn.export import recompute
from cbn.export.recompute import Parameters

X = np.random.default_rng(1).normal(2, 1.5, (6, 4, 30)).astype(np.float32)
EPS = float(np.float32(1e-5))


@pytest.fixture
def stored() -> Parameters:
    generator = np.random.default_rng(2)
    return Parameters(
        scale=generator.uniform(0.5, 2, 4).astype(np.float32),
        bias=generator.normal(size=4).astype(np.float32),
        mean=generator.normal(2, 0.1, 4).astype(np.float32),
        var=generator.uniform(0.5, 2, 4).astype(np.float32),
        eps=EPS,
        momentum=float(np.float32(0.9)),
    )


def change(stored, name, channel, factor):
    values = getattr(stored, name).copy()
    values[channel] *= np.float32(factor)
    return dataclasses.replace(stored, **{name: values})


def in_onnx_terms(stored, x=X):
    """Running statistics by ONNX's definition, from sums that are exact."""
    exact = oracles.statistics(x)
    keep = stored.momentum
    return keep * stored.mean + (1 - keep) * exact.mean, keep * stored.var + (1 - keep) * exact.var


def running(actual, stored, **kwargs):
    stats = cbn.batch_stats(X)
    expected = recompute.running_statistics(stats, stored)
    mean, var = (np.asarray(array, np.float32) for array in actual)
    return recompute.check_running(X.shape, mean, var, expected, stored, stats, X.dtype, **kwargs)


def test_the_same_node_agrees(stored):
    y = recompute.eval_output(X, stored)
    found = recompute.check_eval(X, y, y.copy(), stored)
    assert (found.ok, found.max_abs_error, found.max_ulp_error) == (True, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda stored: dataclasses.replace(stored, eps=1e-4),
        lambda stored: dataclasses.replace(stored, eps=0.0),
        lambda stored: change(stored, "mean", 2, 1.001),
        lambda stored: change(stored, "var", 0, 1.0001),
        lambda stored: change(stored, "scale", 3, 1.0001),
        lambda stored: change(stored, "bias", 1, 1.001),
        lambda stored: dataclasses.replace(stored, mean=stored.mean[::-1].copy()),
    ],
)
def test_a_wrong_parameter_fails(stored, wrong):
    y = recompute.eval_output(X, wrong(stored))
    found = recompute.check_eval(X, y, recompute.eval_output(X, stored), stored)
    assert not found.ok
    assert found.ratio > 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda stored: dataclasses.replace(stored, eps=1e-4),
        lambda stored: change(stored, "scale", 3, 1.0001),
        lambda stored: change(stored, "bias", 1, 1.001),
    ],
)
def test_a_wrong_parameter_fails_in_training(stored, wrong):
    y = recompute.training_output(X, wrong(stored))
    expected = recompute.training_output(X, stored)
    assert not recompute.check_training(X, y, expected, stored, cbn.batch_stats(X)).ok
    assert recompute.check_training(X, expected, expected, stored, cbn.batch_stats(X)).ok


def test_sample_variance_in_place_of_the_populations_fails_in_training(stored):
    stats = cbn.batch_stats(X)
    batch = dataclasses.replace(stored, mean=stats.mean, var=stats.unbiased_var)
    y = recompute.eval_output(X, batch)
    expected = recompute.training_output(X, stored)
    assert not recompute.check_training(X, y, expected, stored, stats).ok


def test_one_wrong_value_of_a_large_array_fails(stored):
    x = np.random.default_rng(3).normal(size=(40, 4, 20_000)).astype(np.float32)
    expected = recompute.eval_output(x, stored)
    y = expected.copy()
    y[-1, -1, -1] += 1e-4
    found = recompute.check_eval(x, y, expected, stored)
    assert not found.ok
    assert found.max_abs_error == pytest.approx(1e-4, rel=1e-2)


def test_running_statistics_are_onnxs(stored):
    found = running(in_onnx_terms(stored), stored)
    assert [item.ok for item in found.values()] == [True, True]


def test_torchs_momentum_in_place_of_onnxs_fails(stored):
    swapped = dataclasses.replace(stored, momentum=1 - stored.momentum)
    found = running(in_onnx_terms(swapped), stored)
    assert [item.ok for item in found.values()] == [False, False]


def test_a_slightly_wrong_momentum_fails(stored):
    near = dataclasses.replace(stored, momentum=0.901)
    far = dataclasses.replace(stored, mean=stored.mean + 5, var=stored.var * 3)
    near = dataclasses.replace(far, momentum=near.momentum)
    found = running(in_onnx_terms(near), far)
    assert [item.ok for item in found.values()] == [False, False]


def test_sample_variance_in_running_var_fails_unless_asked_for(stored):
    mean, var = in_onnx_terms(stored)
    count = X.size / 4
    exact = oracles.statistics(X)
    sample = var + (1 - stored.momentum) * exact.var / (count - 1)
    assert not running((mean, sample), stored)["running_var"].ok
    stats = cbn.batch_stats(X)
    wanted = (mean.astype(np.float32), sample.astype(np.float32))
    found = recompute.check_running(X.shape, *wanted, wanted, stored, stats, X.dtype, unbiased=True)
    assert found["running_var"].ok


def test_sixteen_bit_values_are_computed_in_float32(stored):
    half = X.astype(np.float16)
    exact = oracles.batch_norm(
        half.astype(np.float64), stored.mean, stored.var, stored.scale, stored.bias, EPS
    )
    y = recompute.eval_output(half, stored)
    assert y.dtype == np.float16
    found = recompute.check_eval(half, np.asarray(exact, np.float16), y, stored)
    assert found.ok
    assert found.tolerance < 1.01
    wrong = y + np.float16(0.01)
    assert not recompute.check_eval(half, wrong, y, stored).ok
