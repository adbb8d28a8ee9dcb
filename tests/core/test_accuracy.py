"""The numerical contract: 3 ULP of the largest term, and variances to 1e-12."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from hypothesis import given

import cbn

MEANS = [0.0, 1.0, 1e3, 1e6]
DEVIATIONS = [1e-2, 1.0, 1e3]
SHAPES = [
    (2, 5),
    (3, 1),
    (515, 33),
    (19, 320),
    (3, 17, 1),
    (1, 4, 2),
    (5, 7, 3),
    (3, 5, 7),
    (2, 9, 15),
    (2, 16, 16),
    (2, 3, 17),
    (300, 2, 49),
    (1, 1, 5000),
    (3, 19, 7, 7),
    (2, 3, 56, 56),
    (16, 3, 56, 56),
    (2, 31, 2, 3, 4),
]
LAYOUTS = [pytest.param(lambda x: x, id="first"), pytest.param(oracles.channels_last, id="last")]


def parameters(channels: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = rng.normal(1, 0.5, channels).astype(np.float32)
    bias = rng.normal(0, 1, channels).astype(np.float32)
    bias[0] = 0
    bias[-1] *= 1e-3  # a small bias hides no error of the mean
    return weight, bias


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("mean", MEANS)
class TestFloat32:
    def test_training_output_is_within_3_ulp(self, mean, deviation, shape, layout):
        rng = np.random.default_rng(0)
        x = layout(rng.normal(mean, deviation, shape).astype(np.float32))
        weight, bias = parameters(shape[1])
        y = cbn.batch_norm(x, None, None, weight, bias, training=True)
        exact = oracles.statistics(x)
        error = oracles.ulp_error(y, x, exact.mean, exact.var, weight, bias)
        assert error <= oracles.MAX_ULP

    def test_eval_output_is_within_3_ulp(self, mean, deviation, shape, layout):
        rng = np.random.default_rng(0)
        channels = shape[1]
        x = layout(rng.normal(mean, deviation, shape).astype(np.float32))
        weight, bias = parameters(channels)
        running_mean = rng.normal(mean, deviation, channels).astype(np.float32)
        running_var = (deviation**2 * rng.uniform(0.5, 2, channels)).astype(np.float32)
        y = cbn.batch_norm(x, running_mean, running_var, weight, bias)
        error = oracles.ulp_error(y, x, running_mean, running_var, weight, bias)
        assert error <= oracles.MAX_ULP


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_variance_is_within_1e12(dtype, shape, layout):
    for mean in MEANS:
        for deviation in DEVIATIONS:
            x = np.random.default_rng(2).normal(mean, deviation, shape)
            x = layout(x.astype(dtype))
            exact = oracles.statistics(x)
            error = oracles.relative_error(cbn.batch_stats(x).var, exact.var)
            assert error <= oracles.VARIANCE_RTOL, (mean, deviation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_eval_output_is_within_3_ulp(shape, layout):
    rng = np.random.default_rng(3)
    for mean in MEANS:
        x = layout(rng.normal(mean, 2, shape))
        weight, bias = rng.normal(1, 0.5, shape[1]), rng.normal(0, 1, shape[1])
        running_mean, running_var = rng.normal(mean, 2, shape[1]), rng.uniform(0.5, 2, shape[1])
        y = cbn.batch_norm(x, running_mean, running_var, weight, bias)
        error = oracles.ulp_error(y, x, running_mean, running_var, weight, bias)
        assert error <= oracles.MAX_ULP, mean


def test_the_scale_of_float64_is_rounded_once():
    rng = np.random.default_rng(4)
    weight, var = rng.normal(0, 3, 20_000), np.exp(rng.normal(0, 8, 20_000))
    for eps in (0.0, 1e-5, 1.0):
        x = np.ones((1, weight.size))
        y = cbn.batch_norm(x, np.zeros(weight.size), var, weight, eps=eps)
        exact = weight / np.sqrt(var.astype(np.longdouble) + np.longdouble(eps))
        error = np.abs(y[0] - exact) / np.spacing(np.abs(y[0]))
        assert 0.45 < np.max(error) < 0.505, eps


@given(oracles.inputs())
def test_training_agrees_with_the_oracle_on_any_shape(drawn):
    x, axis = drawn
    exact = oracles.statistics(x, axis)
    y = cbn.batch_norm(x, None, None, training=True, axis=axis)
    if x.dtype == np.float32:
        assert oracles.ulp_error(y, x, exact.mean, exact.var, axis=axis) <= oracles.MAX_ULP
    else:  # statistics of x's own precision: their rounding shows, in units of a deviation
        expected = oracles.batch_norm(x, exact.mean, exact.var, axis=axis)
        rounding = 1 + np.abs(exact.mean) / np.sqrt(exact.var + np.longdouble(1e-5))
        largest = np.maximum(np.abs(expected), oracles.along(rounding, x.ndim, axis))
        assert np.max(np.abs(y - expected) / largest) <= 1e-14
