"""`batch_stats`; how its results merge is in test_merging.py."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import given

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


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_they_are_float64_whatever_the_dtype_of_x(dtype):
    stats = cbn.batch_stats(oracles.array((4, 3), dtype))
    for values in (stats.mean, stats.m2, stats.mean_low, stats.var, stats.unbiased_var):
        assert (values.dtype, values.shape) == (np.float64, (3,))


def test_they_cannot_be_assigned_to():
    stats = cbn.batch_stats(np.ones((2, 1)))
    for name in ("count", "mean", "m2", "mean_low", "var", "other"):
        with pytest.raises(AttributeError, match=name):
            setattr(stats, name, 3)
        with pytest.raises(AttributeError, match=name):
            delattr(stats, name)
    assert (stats.count, stats.mean.tolist()) == (2, [1.0])


def test_they_show_their_fields():
    stats = cbn.BatchStats(3, np.array([1.5]), np.array([2.0]))
    assert repr(stats) == "BatchStats(count=3, mean=array([1.5]), m2=array([2.]), mean_low=None)"


class Named(cbn.BatchStats):
    """A subclass, with an attribute of its own."""

    name = ""


def test_a_subclass_keeps_what_it_adds():
    stats = Named(3, [1.5], [2.0])
    stats.name = "first"
    for other in (copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert (type(other), other.name, other.mean.tolist()) == (Named, "first", [1.5])
        assert repr(other).startswith("Named(count=3, ")
        assert not other.mean.flags.writeable


def test_they_match_by_position():
    match cbn.BatchStats(3, [1.5], [2.0]):
        case cbn.BatchStats(count, mean):
            assert (count, mean.tolist()) == (3, [1.5])
        case _:
            raise AssertionError


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_low_is_what_the_mean_lost(dtype):
    x = np.random.default_rng(0).normal(1e6, 1e-2, (999, 3)).astype(dtype)
    stats, exact = cbn.batch_stats(x), oracles.statistics(x)
    assert np.all(np.abs(stats.mean_low) <= np.spacing(stats.mean) / 2)
    both = stats.mean.astype(np.longdouble) + stats.mean_low
    assert np.all(np.abs(both - exact.mean) <= 1e-12 * np.sqrt(exact.var))


def test_their_arrays_are_copies_that_cannot_be_written():
    mean, m2 = np.array([1, 2], np.float32), np.array([3, 4])
    stats = cbn.BatchStats(np.int64(3), mean, m2, [0, 0])
    mean[:] = m2[:] = 0
    for values, expected in ((stats.mean, [1, 2]), (stats.m2, [3, 4]), (stats.mean_low, [0, 0])):
        assert (values.dtype, values.tolist()) == (np.float64, expected)
    computed = cbn.batch_stats(oracles.array((4, 3)))
    x = oracles.array((8, 3))
    for some in (stats, computed, computed + computed, cbn.BatchStats.from_array(np.ones(4))):
        for values in (some.mean, some.m2, some.mean_low):
            with pytest.raises(ValueError, match="read-only"):
                values[0] = 1
    with pytest.raises(ValueError, match="running_mean: expected a writable array"):
        cbn.batch_norm(x, computed.mean, computed.var, training=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, np.zeros(3), np.zeros(3)), ValueError, "count: expected an int >= 1, got 0"),
        ((1.5, np.zeros(3), np.zeros(3)), TypeError, "count: expected an int >= 1, got 1.5"),
        (("2", np.zeros(3), np.zeros(3)), TypeError, "count: expected an int >= 1, got '2'"),
        ((5, None, np.zeros(3)), TypeError, "mean: expected an array of numbers, got NoneType"),
        ((5, np.zeros(3), "abc"), TypeError, "m2: expected an array of numbers, got str"),
        ((5, np.zeros(3) + 1j, np.zeros(3)), TypeError, "mean: expected an array of numbers"),
        ((5, 1.0, 1.0), ValueError, r"mean: expected shape \(C,\), got \(\)"),
        ((5, np.zeros(3), np.zeros(1)), ValueError, r"m2: expected shape \(3,\), like mean, got"),
        ((5, np.zeros((3, 1)), np.zeros((3, 1))), ValueError, r"mean: expected shape \(C,\), got"),
        ((5, np.zeros(3), np.zeros(3), [1]), ValueError, r"mean_low: expected shape \(3,\), like"),
        ((5, np.zeros(2), [1, -1]), ValueError, "m2: expected values >= 0, got -1.0 at channel 1"),
    ],
)
def test_statistics_that_cannot_be_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cbn.BatchStats(*arguments)


def test_only_statistics_are_tracked():
    with pytest.raises(TypeError, match="stats: expected BatchStats, got int"):
        cbn.BatchNorm1d(3).track(3)
