"""Batch variances of data that breaks simpler rules of summation, channels first and last."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

import cbn

COUNT = 20_000


def noise(scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).normal(0, scale, COUNT)


def first_values_far_off() -> np.ndarray:
    values = noise()
    values[:64] += 1e6
    return values


def first_value_far_off() -> np.ndarray:
    values = noise()
    values[0] = -1e6
    return values


def last_value_far_off() -> np.ndarray:
    values = noise()
    values[-1] = 1e6
    return values


def alternating_signs() -> np.ndarray:
    return (1e3 + noise(1e-2)) * (-1.0) ** np.arange(COUNT)


def steps() -> np.ndarray:
    return np.repeat([1e6, 0.0, -1e3, 1e-3], COUNT // 4) + noise(1e-2)


ADVERSARIES = {
    "first values far off": first_values_far_off,
    "first value far off": first_value_far_off,
    "last value far off": last_value_far_off,
    "alternating signs": alternating_signs,
    "mean 1e6, deviation 1e-2": lambda: 1e6 + noise(1e-2),
    "mean 1e6, deviation 1, sorted": lambda: np.sort(1e6 + noise()),
    "sorted downwards": lambda: np.sort(noise())[::-1],
    "steps": steps,
    "growing by orders": lambda: np.geomspace(1e-6, 1e6, COUNT),
}

FORMS = {
    "rows of one channel": lambda values: values.reshape(1, 1, -1),
    "short runs": lambda values: np.repeat(values.reshape(-1, 1, 20), 3, axis=1),
    "last": lambda values: oracles.channels_last(np.repeat(values.reshape(-1, 1, 20), 3, axis=1)),
    "many channels, last": lambda values: np.repeat(values[:, None], 40, axis=1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_variance_of_adverse_data(adversary, dtype, form):
    x = FORMS[form](ADVERSARIES[adversary]().astype(dtype))
    exact = oracles.statistics(x[:, :1])
    error = oracles.relative_error(cbn.batch_stats(x).var, exact.var)
    assert error <= oracles.VARIANCE_RTOL


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e5, 1e-20, 3e38])
def test_a_constant_float32_channel_has_variance_zero_and_its_own_mean(value, form):
    constant = np.float32(value)
    stats = cbn.batch_stats(FORMS[form](np.full(COUNT, constant)))
    assert np.all(stats.var == 0)
    assert np.all(stats.mean == float(constant))


def test_a_constant_channel_normalizes_to_its_bias():
    x = np.full((4, 2, 25), 0.1, np.float32)
    bias = np.array([0.25, -3], np.float32)
    y = cbn.batch_norm(x, None, None, None, bias, training=True)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], x.shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["first", "last"])
def test_a_value_that_is_not_finite_spoils_its_own_channel_alone(form, bad):
    x = oracles.array((3, 20, 6))
    clean = cbn.batch_norm(x, None, None, training=True)
    x[1, 7, 2] = bad
    x = oracles.channels_last(x) if form == "last" else x
    y = cbn.batch_norm(x, None, None, training=True)
    assert np.isnan(y[:, 7]).all()
    others = np.arange(20) != 7
    np.testing.assert_allclose(y[:, others], clean[:, others], rtol=1e-5, atol=1e-6)
