"""`batch_stats` and the merging of `BatchStats`."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbn


@given(oracles.inputs())
def test_statistics_agree_with_the_oracle(drawn):
    x, axis = drawn
    stats, exact = cbn.batch_stats(x, axis=axis), oracles.statistics(x, axis)
    assert stats.count == exact.count
    assert oracles.relative_error(stats.var, exact.var) <= oracles.VARIANCE_RTOL
    assert np.all(np.abs(stats.mean - exact.mean) <= 1e-12 * np.sqrt(exact.var))


def test_variances_are_biased_and_unbiased():
    stats = cbn.batch_stats(np.array([[1.0], [2.0], [3.0], [6.0]]))
    assert stats.count == 4
    assert stats.mean == 3
    assert stats.m2 == 14
    assert stats.var == 14 / 4
    assert stats.unbiased_var == 14 / 3


def test_a_single_value_has_no_unbiased_variance():
    stats = cbn.batch_stats(np.ones((1, 3)))
    np.testing.assert_array_equal(stats.var, np.zeros(3))
    with pytest.raises(
        ValueError, match="unbiased_var: expected more than 1 value per channel, got 1"
    ):
        _ = stats.unbiased_var


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_they_are_float64_whatever_the_dtype_of_x(dtype):
    stats = cbn.batch_stats(oracles.array((4, 3), dtype))
    assert (stats.mean.dtype, stats.m2.dtype) == (np.float64, np.float64)


def grouped(parts: list[cbn.BatchStats], draw) -> cbn.BatchStats:
    """The parts merged two neighbours at a time, in an order that Hypothesis chooses."""
    while len(parts) > 1:
        at = draw(st.integers(0, len(parts) - 2))
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
    return parts[0]


@given(st.data())
def test_any_grouping_of_parts_equals_the_whole(data):
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    offset, deviation = data.draw(
        st.sampled_from([(0, 1), (10, 1), (-300, 20), (0, 1e-3), (1e5, 1e4)])
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x = rng.normal(offset, deviation, (sum(sizes), 3, 2)).astype(np.float32)
    ends = np.cumsum(sizes)
    parts = [cbn.batch_stats(x[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    whole, exact = grouped(parts, data.draw), oracles.statistics(x)
    assert whole.count == exact.count
    assert oracles.relative_error(whole.var, exact.var) <= oracles.VARIANCE_RTOL
    assert np.all(
        np.abs(whole.mean - exact.mean) <= 1e-12 * (np.sqrt(exact.var) + np.abs(exact.mean))
    )


def test_sum_merges_a_list():
    x = oracles.array((12, 3, 5))
    merged, whole = sum(cbn.batch_stats(part) for part in np.split(x, 4)), cbn.batch_stats(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.var, whole.var, rtol=oracles.VARIANCE_RTOL)


def test_merging_leaves_the_parts_as_they_were():
    one, two = (cbn.batch_stats(oracles.array((4, 3), seed=seed)) for seed in (0, 1))
    before = one.mean.copy(), one.m2.copy()
    _ = one + two
    np.testing.assert_array_equal((one.mean, one.m2), before)


def test_they_cannot_be_assigned_to():
    stats = cbn.batch_stats(np.ones((2, 1)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.count = 3


def test_other_numbers_of_channels_do_not_merge():
    one, two = cbn.batch_stats(np.ones((2, 3))), cbn.batch_stats(np.ones((2, 4)))
    with pytest.raises(ValueError, match="BatchStats: cannot merge 3 channels with 4"):
        _ = one + two


@pytest.mark.parametrize("other", [1, 0.5, None, "x"])
def test_what_is_no_statistics_does_not_merge(other):
    stats = cbn.batch_stats(np.ones((2, 3)))
    with pytest.raises(TypeError):
        _ = stats + other
    with pytest.raises(TypeError):
        _ = other + stats
