"""What is held out: disjoint, seeded, from everywhere, with neighbours kept together."""

from __future__ import annotations

import numpy as np
import pytest

from cbn.export.data import DataError
from cbn.export.inputs import ModelInput
from cbn.export.recalibration.data.sources import open_source, split

F4 = np.dtype(np.float32)
IMAGE = ModelInput("image", F4, ("N", 2, 3))
FOUR = ModelInput("image", F4, (4, 2, 3))
X = np.arange(70 * 6, dtype=np.float32).reshape(70, 2, 3)


def whole(source):
    return np.concatenate([feeds["image"] for feeds in source])


def parts():
    return [X[start : start + 10] for start in range(0, 70, 10)]


@pytest.mark.parametrize("data", [X, parts()], ids=["array", "list"])
@pytest.mark.parametrize("held_out", [0.01, 0.2, 0.5, 0.99])
def test_split_parts_the_data(data, held_out):
    source = open_source(data, [IMAGE], batch_size=8)
    rest, held = split(source, held_out, seed=3)
    assert held.samples == min(max(round(70 * held_out), 1), 69)
    both = np.concatenate([whole(rest), whole(held)])[:, 0, 0] / 6
    assert sorted(both) == list(range(70))
    assert (np.diff(whole(rest)[:, 0, 0]) > 0).all()
    again = split(open_source(data, [IMAGE], batch_size=8), held_out, seed=3)[1]
    np.testing.assert_array_equal(whole(again), whole(held))


def test_split_depends_on_the_seed():
    source = open_source(X, [IMAGE])
    assert not np.array_equal(*(whole(split(source, seed=seed)[1]) for seed in (0, 1)))


def test_split_of_sorted_data_keeps_all_classes_on_both_sides():
    classes = np.repeat(np.arange(10), 30)
    source = open_source(np.zeros((300, 2, 3), np.float32), [IMAGE], labels=classes)
    rest, held = split(source)
    np.testing.assert_array_equal(np.bincount(held.labels.values), 6)
    np.testing.assert_array_equal(np.bincount(rest.labels.values), 24)


def test_split_leaves_neighbours_together():
    many = np.arange(20_000, dtype=np.float32)[:, None, None].repeat(2, 1).repeat(3, 2)
    _, held = split(open_source(many, [IMAGE]))
    borders = np.count_nonzero(np.diff(whole(held)[:, 0, 0]) > 1) + 1
    assert borders <= 100


def test_split_of_a_fixed_batch_size_holds_out_whole_batches():
    rest, held = split(open_source(X, [FOUR]))
    assert (rest.samples, held.samples) == (56, 12)
    assert [len(feeds["image"]) for feeds in held] == [4] * 3


def test_split_again_is_of_the_part():
    first, second = split(split(open_source(X, [IMAGE]))[0], 0.5)
    both = np.concatenate([whole(first), whole(second)])[:, 0, 0]
    np.testing.assert_array_equal(np.sort(both), whole(split(open_source(X, [IMAGE]))[0])[:, 0, 0])


def test_split_of_too_little_is_refused():
    with pytest.raises(DataError, match="takes 2 samples or more, got 1"):
        split(open_source(X[:1], [IMAGE]))
    with pytest.raises(DataError, match="takes 2 batches of 4 samples or more, got 1"):
        split(open_source(X[:5], [FOUR]))
    with pytest.raises(ValueError, match="held_out between 0 and 1, got 1"):
        split(open_source(X, [IMAGE]), 1)
