"""`BatchStats` merge: parts in any grouping are the whole, here and from other processes."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
import pickle

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbn

# Mean and deviation of the values.
PLACES = [(0, 1), (10, 1), (-300, 20), (0, 1e-3), (1e5, 1e4), (1e6, 1e-2), (-1e6, 1e-2)]


def assert_is_whole(merged: cbn.BatchStats, x: np.ndarray) -> None:
    """To 1e-12: of the variance, and for the mean of a deviation."""
    exact = oracles.statistics(x)
    assert merged.count == exact.count
    assert oracles.relative_error(merged.var, exact.var) <= oracles.VARIANCE_RTOL
    mean = merged.mean.astype(np.longdouble) + merged.mean_low
    assert np.all(np.abs(mean - exact.mean) <= 1e-12 * np.sqrt(exact.var))


def grouped(parts: list[cbn.BatchStats], draw) -> cbn.BatchStats:
    """The parts merged two neighbours at a time, in an order that Hypothesis chooses."""
    while len(parts) > 1:
        at = draw(st.integers(0, len(parts) - 2))
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
    return parts[0]


@given(st.data())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_any_grouping_of_parts_equals_the_whole(place, dtype, data):
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x = rng.normal(*place, (sum(sizes), 3, 2)).astype(dtype)
    ends = np.cumsum(sizes)
    parts = [cbn.batch_stats(x[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    assert_is_whole(grouped(parts, data.draw), x)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_thousand_parts_one_after_the_other(place):
    x = np.random.default_rng(0).normal(*place, (3000, 2))
    parts = [cbn.batch_stats(part) for part in np.split(x, 1000)]
    for merged in (sum(parts), functools.reduce(operator.add, reversed(parts))):
        assert_is_whole(merged, x)


def test_a_few_values_against_many():
    x = np.random.default_rng(0).normal(50, 3, (100_001, 2))
    assert_is_whole(cbn.batch_stats(x[:1]) + cbn.batch_stats(x[1:]), x)
    assert_is_whole(cbn.batch_stats(x[:-1]) + cbn.batch_stats(x[-1:]), x)


def test_equal_values_have_no_variance():
    x = np.full((6, 2), 0.1)
    merged = sum(cbn.batch_stats(part) for part in np.split(x, 3))
    np.testing.assert_array_equal(merged.mean, [0.1, 0.1])
    np.testing.assert_array_equal(merged.m2, [0, 0])


def test_merging_leaves_the_parts_as_they_were():
    one, two = (cbn.batch_stats(oracles.array((4, 3), seed=seed)) for seed in (0, 1))
    before = one.to_array(), two.to_array()
    _ = one + two
    np.testing.assert_array_equal((one.to_array(), two.to_array()), before)


def test_parts_without_mean_low_merge():
    one = cbn.BatchStats(2, np.array([1.0]), np.array([2.0]))
    two = cbn.BatchStats(1, np.array([4.0]), np.array([0.0]))
    merged = one + two  # 0, 2 and 4
    assert (merged.count, merged.mean, merged.m2) == (3, 2, 8)


def test_an_infinite_or_nan_value_shows_as_it_does_in_one_array():
    x = np.array([[np.inf, np.nan, -np.inf, 1], [1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 2, 2]])
    whole = cbn.batch_stats(x)
    parts = [cbn.batch_stats(row) for row in np.split(x, 4)]
    for order in itertools.permutations(parts):
        merged = sum(order)
        np.testing.assert_array_equal(merged.mean[:3], whole.mean[:3])
        np.testing.assert_array_equal(merged.m2[:3], whole.m2[:3])
        np.testing.assert_allclose(merged.var[3], whole.var[3], rtol=1e-12)


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


# ---- one array of float64 ------------------------------------------------------------------------


def some(seed: int = 0, mean: float = 1e6) -> cbn.BatchStats:
    return cbn.batch_stats(np.random.default_rng(seed).normal(mean, 1e-2, (7, 3)))


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_the_array_holds_count_mean_mean_low_and_m2(channels):
    stats = cbn.batch_stats(oracles.array((5, channels), np.float64))
    array = stats.to_array()
    assert (array.dtype, array.shape) == (np.float64, (1 + 3 * channels,))
    assert array[0] == 5
    np.testing.assert_array_equal(
        array[1:].reshape(3, channels), (stats.mean, stats.mean_low, stats.m2)
    )


def test_there_and_back_again():
    stats = some()
    back = cbn.BatchStats.from_array(stats.to_array())
    assert back.count == 7
    assert type(back.count) is int
    for name in ("mean", "mean_low", "m2"):
        np.testing.assert_array_equal(getattr(back, name), getattr(stats, name))


def test_statistics_without_mean_low_send_zeros():
    stats = cbn.BatchStats(2, np.array([1.0]), np.array([2.0]))
    np.testing.assert_array_equal(stats.to_array(), [2, 1, 0, 2])


def test_what_comes_back_does_not_follow_the_array():
    array = some().to_array()
    back = cbn.BatchStats.from_array(array)
    array[...] = 0
    np.testing.assert_array_equal(back.to_array(), some().to_array())


def test_a_reduction_over_arrays_is_the_sum():
    def merge(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return (cbn.BatchStats.from_array(one) + cbn.BatchStats.from_array(two)).to_array()

    parts = [some(seed) for seed in range(5)]
    reduced = functools.reduce(merge, [part.to_array() for part in parts])
    np.testing.assert_array_equal(reduced, sum(parts).to_array())
    x = [np.random.default_rng(seed).normal(1e6, 1e-2, (7, 3)) for seed in range(5)]
    assert_is_whole(cbn.BatchStats.from_array(reduced), np.concatenate(x))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda stats: pickle.loads(pickle.dumps(stats))]
)
def test_copied_statistics_are_the_same(duplicate):
    np.testing.assert_array_equal(duplicate(some()).to_array(), some().to_array())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(0), r"array: expected shape \(1 \+ 3 C,\), got \(0,\)"),
        (np.ones(1), r"array: expected shape \(1 \+ 3 C,\), got \(1,\)"),
        (np.ones(6), r"array: expected shape \(1 \+ 3 C,\), got \(6,\)"),
        (np.ones((2, 2)), r"array: expected shape \(1 \+ 3 C,\), got \(2, 2\)"),
        (np.ones((4, 4)), r"array: expected shape \(1 \+ 3 C,\), got \(4, 4\)"),
        (np.float64(3), r"array: expected shape \(1 \+ 3 C,\), got \(\)"),
        (np.zeros(4), "array: expected a whole number >= 1 first, got 0.0"),
        (np.full(4, 1.5), "array: expected a whole number >= 1 first, got 1.5"),
        (np.full(4, -2.0), "array: expected a whole number >= 1 first, got -2.0"),
        (np.full(4, np.nan), "array: expected a whole number >= 1 first, got nan"),
        (np.full(4, np.inf), "array: expected a whole number >= 1 first, got inf"),
    ],
    ids=repr,
)
def test_an_array_of_another_make_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        cbn.BatchStats.from_array(array)


# ---- into a layer --------------------------------------------------------------------------------


def test_a_layer_tracks_merged_statistics_as_its_own():
    x = oracles.array((12, 3, 5), np.float64)
    whole, parts = (cbn.BatchNorm1d(3, dtype="float64") for _ in range(2))
    whole(x)
    parts.track(sum(cbn.batch_stats(part) for part in np.split(x, [1, 5])))
    for name, value in whole.state_dict().items():
        np.testing.assert_allclose(parts.state_dict()[name], value, rtol=1e-14)


def test_a_layer_refuses_statistics_that_do_not_fit_and_stays_as_it_was():
    bn = cbn.BatchNorm1d(3)
    before = bn.state_dict()
    with pytest.raises(ValueError, match="stats: expected 3 channels, got 4"):
        bn.track(cbn.batch_stats(np.ones((2, 4))))
    with pytest.raises(ValueError, match="expected more than 1 value per channel, got 1"):
        bn.track(cbn.batch_stats(np.ones((1, 3))))
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_layer_without_running_statistics_has_nothing_to_track():
    bn = cbn.BatchNorm1d(3, track_running_stats=False)
    bn.track(cbn.batch_stats(oracles.array((4, 3))))
    assert (bn.running_mean, bn.running_var, bn.num_batches_tracked) == (None, None, None)
