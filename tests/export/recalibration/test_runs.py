"""Runs of samples: chosen from everywhere, disjoint, and cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbn.export.recalibration.data.runs import batches_of, complement, count, locate, part, spread


def members(runs):
    return [index for start, stop in runs for index in range(start, stop)]


totals = st.integers(1, 700)


@given(totals, st.data())
def test_spread_chooses_as_many_as_are_wanted_in_order(total, data):
    wanted = data.draw(st.integers(1, total))
    generator = data.draw(st.sampled_from([None, 0, 7]))
    runs = spread(total, wanted, generator if generator is None else np.random.default_rng(1))
    chosen = members(runs)
    assert len(chosen) == wanted == count(runs)
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < total


def test_spread_reaches_every_part_of_the_data():
    chosen = members(spread(10_000, 2_000, np.random.default_rng(0)))
    parts = np.bincount(np.array(chosen) // 100, minlength=100)
    np.testing.assert_array_equal(parts, 20)


@given(totals, st.data())
def test_complement_is_the_rest(total, data):
    runs = spread(total, data.draw(st.integers(1, total)), np.random.default_rng(2))
    assert sorted(members(runs) + members(complement(runs, total))) == list(range(total))


def test_part_counts_within_the_runs_and_locate_undoes_it():
    runs = [(2, 5), (10, 12), (20, 30)]
    chosen = part(runs, [(1, 4), (6, 8)])
    assert members(chosen) == [3, 4, 10, 21, 22]
    assert members(locate(runs, chosen)) == [1, 2, 3, 6, 7]


@pytest.mark.parametrize(("samples", "sizes"), [(32, [32]), (33, [16, 17]), (5, [5]), (0, [])])
def test_batches_are_as_few_and_as_equal_as_can_be(samples, sizes):
    runs = [(0, samples)] if samples else []
    assert [count(batch) for batch in batches_of(runs, (), 32, fixed=False)] == sizes


def test_batches_of_a_fixed_size_leave_the_rest_out():
    batches = list(batches_of([(0, 3), (5, 12)], (), 4, fixed=True))
    assert [members(batch) for batch in batches] == [[0, 1, 2, 5], [6, 7, 8, 9]]


def test_no_batch_goes_across_a_break():
    batches = list(batches_of([(0, 3), (4, 10)], (2, 6), 8, fixed=False))
    assert [members(batch) for batch in batches] == [[0, 1], [2, 4, 5], [6, 7, 8, 9]]
