"""What is seen of a batch norm's input: moments that merge exactly, and their standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbn
from cbn.export.recalibration.measure.observed import Observed
from cbn.export.recalibration.measure.samples import measure, observe
from cbn.export.recalibration.measure.targets import Target

CHANNELS = 3


def samples(count, length, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, CHANNELS, length)) + generator.normal(
        size=(count, CHANNELS, 1)
    )


def seen(x, first=0):
    return Observed.of_samples(*measure(x), first)


def close(one, two, bound=1e-12):
    return np.abs(np.asarray(one) - two).max() <= bound * np.abs(two).max()


def test_it_holds_the_moments_of_all_values():
    x = samples(6, 5)
    values = np.moveaxis(x, 1, 0).reshape(CHANNELS, -1)
    observed = seen(x)
    assert (observed.values.count, observed.samples) == (30, 6)
    assert close(observed.values.mean, values.mean(axis=1))
    assert close(observed.values.var, values.var(axis=1))


def errors_written_out(parts):
    """Cluster-robust standard errors, sample by sample, by the definition."""
    clusters = [sample for x in parts for sample in x]
    total = sum(sample.shape[1] for sample in clusters)
    mean = sum(sample.sum(axis=1) for sample in clusters) / total
    var = sum(((sample - mean[:, None]) ** 2).sum(axis=1) for sample in clusters) / total
    factor = len(clusters) / (len(clusters) - 1)
    of_mean = sum((sample - mean[:, None]).sum(axis=1) ** 2 for sample in clusters)
    influence = [((s - mean[:, None]) ** 2 - var[:, None]).sum(axis=1) for s in clusters]
    of_var = sum(part**2 for part in influence)
    return np.sqrt(factor * of_mean) / total, np.sqrt(factor * of_var) / total


@pytest.mark.parametrize("lengths", [(4, 4, 4), (1, 9, 4)], ids=["alike", "of many sizes"])
def test_standard_errors_after_merging_are_those_of_the_definition(lengths):
    parts = [samples(3 + i, length, seed=i) for i, length in enumerate(lengths)]
    merged = sum(seen(x) for x in parts)
    mean_error, var_error = errors_written_out(parts)
    assert close(merged.mean_error, mean_error)
    assert close(merged.var_error, var_error)
    assert close(merged.effective_samples, merged.values.var / mean_error**2)


def test_the_standard_errors_are_how_far_estimates_scatter():
    found = [seen(samples(40, 8, seed=seed)) for seed in range(400)]
    for name, error in (("mean", "mean_error"), ("var", "var_error")):
        scatter = np.std([getattr(one.values, name) for one in found], axis=0)
        told = np.mean([getattr(one, error) for one in found], axis=0)
        assert np.abs(told / scatter - 1).max() < 0.15


def test_values_that_are_alike_within_a_sample_count_once():
    alike = np.repeat(samples(50, 1), 64, axis=2)
    assert seen(alike).effective_samples == pytest.approx(50, rel=0.05)
    independent = np.random.default_rng(0).normal(size=(500, CHANNELS, 64))
    assert seen(independent).effective_samples == pytest.approx(32000, rel=0.2)


def test_one_sample_has_no_standard_error():
    observed = seen(samples(1, 20))
    for errors in (observed.mean_error, observed.var_error, observed.effective_samples):
        assert np.isnan(errors).all()


def test_a_constant_channel_is_neither_sure_nor_unsure():
    observed = seen(np.full((4, CHANNELS, 5), 2.5))
    assert (observed.mean_error == 0).all()
    assert np.isnan(observed.effective_samples).all()


@pytest.mark.parametrize("first", [0, 1])
def test_halves_are_the_samples_of_even_and_odd_index_of_all_data(first):
    x = samples(5, 4)
    halves = seen(x, first).halves
    expected = [cbn.batch_stats(part) for part in (x[first % 2 :: 2], x[1 - first % 2 :: 2])]
    for half, stats in zip(halves, expected, strict=True):
        assert half.count == stats.count
        assert close(half.mean, stats.mean)
        assert close(half.var, stats.var)


def test_the_half_without_a_sample_is_none():
    assert seen(samples(1, 4)).halves[1] is None
    assert seen(samples(1, 4), 7).halves[0] is None
    assert (seen(samples(1, 4)) + seen(samples(1, 4), 1)).halves[1].count == 4


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
def test_merging_is_the_same_as_seeing_all_at_once(sizes, seed):
    x = samples(sum(sizes), 3, seed)
    merged, first = 0, 0
    for size in sizes:
        merged = merged + seen(x[first : first + size], first)
        first += size
    whole = seen(x)
    assert (merged.values.count, merged.samples) == (whole.values.count, whole.samples)
    assert close(merged.values.mean, whole.values.mean)
    assert close(merged.values.var, whole.values.var)
    if len(x) > 1:
        assert close(merged.mean_error, whole.mean_error, 1e-9)
        assert close(merged.var_error, whole.var_error, 1e-9)


def test_a_mean_far_from_zero_costs_no_digits():
    x = samples(8, 6)
    near, far = seen(x), seen(x[:4] + 1e9) + seen(x[4:] + 1e9, 4)
    assert close(far.values.var, near.values.var, 1e-6)
    assert close(far.mean_error, near.mean_error, 1e-6)
    assert close(far.var_error, near.var_error, 1e-6)


def test_arrays_give_the_same_bits_again():
    observed = seen(samples(5, 4), 3) + seen(samples(1, 7), 8)
    again = Observed.from_arrays(observed.to_arrays())
    for name, array in observed.to_arrays().items():
        assert array.tobytes() == again.to_arrays()[name].tobytes()
    more = samples(2, 3)
    for one, two in zip(
        (observed + seen(more)).to_arrays().values(),
        (again + seen(more)).to_arrays().values(),
        strict=True,
    ):
        assert one.tobytes() == two.tobytes()


def test_arrays_that_are_missing_or_do_not_fit_are_refused():
    arrays = seen(samples(2, 3)).to_arrays()
    with pytest.raises(ValueError, match="'even' is missing"):
        Observed.from_arrays({name: a for name, a in arrays.items() if name != "even"})
    with pytest.raises(ValueError, match=r"spread: expected shape \(16,\), got \(15,\)"):
        Observed.from_arrays({**arrays, "spread": arrays["spread"][1:]})


def test_no_sample_is_refused():
    with pytest.raises(ValueError, match="N >= 1"):
        Observed.of_samples(np.zeros((0, 2)), np.zeros((0, 2)), 3)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 6), (4, 3, 2, 3), (4, 3, 2, 3, 2)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_measure_takes_the_moments_of_each_row_in_float64(shape, dtype):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    rows = x.astype(np.float64).reshape(4, 3, -1)
    means, squares, length = measure(x)
    assert length == math.prod(shape[2:])
    assert np.abs(means - rows.mean(axis=2)).max() < 1e-14
    assert np.abs(squares - rows.var(axis=2) * length).max() < 1e-13


def test_rows_of_one_sample_are_grouped():
    x = samples(12, 5)
    found = measure(x).grouped(4)
    whole = np.moveaxis(x.reshape(4, 3, CHANNELS, 5), 1, 2).reshape(4, CHANNELS, 15)
    assert found.length == 15
    assert close(found.means, whole.mean(axis=2))
    assert close(found.squares, whole.var(axis=2) * 15)


@pytest.mark.parametrize("count", [5, 12, 24])
def test_rows_in_no_multiple_are_samples_as_they_are(count):
    moments = measure(samples(12, 5))
    assert moments.grouped(count) is moments


def test_members_are_joined_within_each_sample():
    one, two = samples(4, 5), samples(4, 3, seed=1)
    target = Target("a", ("a", "b"), 3, np.zeros(3), np.ones(3), 1e-5, np.dtype("float32"))
    found = observe(target, [measure(one), measure(two)], 4, 0)
    expected = seen(np.concatenate([one, two], axis=2))
    assert found.samples == 4
    for got, wanted in zip(found.to_arrays().values(), expected.to_arrays().values(), strict=True):
        assert close(got, wanted)


def test_members_of_other_numbers_of_rows_are_added():
    one, two = samples(4, 5), samples(3, 5)
    target = Target("a", ("a", "b"), 3, np.zeros(3), np.ones(3), 1e-5, np.dtype("float32"))
    found = observe(target, [measure(one), measure(two)], 4, 0)
    assert found.samples == 7
    assert close(found.values.mean, np.concatenate([one, two]).mean(axis=(0, 2)))
