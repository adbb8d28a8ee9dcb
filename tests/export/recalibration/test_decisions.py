"""Outputs read as decisions among classes, and the running sums over them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cbn.export.recalibration.judge.decisions import Decisions, Reading, Tally, read_outputs


def softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def scores(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def decisions(p: np.ndarray) -> Decisions:
    return Decisions.of(reading_of(p), {"p": p})


def reading_of(p: np.ndarray) -> Reading:
    reading = read_outputs({"p": p})
    assert reading is not None
    return reading


def probabilities(p: np.ndarray) -> np.ndarray:
    return reading_of(p).probabilities({"p": p})


@pytest.mark.parametrize(
    ("array", "kind", "axis", "classes"),
    [
        (scores(4, 10), "scores", -1, 10),
        (scores(4, 7, 10), "scores", -1, 10),
        (softmax(scores(4, 10)), "probabilities", -1, 10),
        (softmax(scores(4, 10)).astype(np.float16), "probabilities", -1, 10),
        (softmax(scores(4, 7, 10)), "probabilities", -1, 10),
        (softmax(scores(4, 3, 5, 6), axis=1), "probabilities", 1, 3),
        (np.log(softmax(scores(4, 7, 10))), "log-probabilities", -1, 10),
    ],
)
def test_what_reads_as_classes(array: np.ndarray, kind: str, axis: int, classes: int) -> None:
    reading = read_outputs({"boxes": np.arange(4), "out": array})
    assert reading is not None
    assert (reading.output, reading.kind, reading.axis) == ("out", kind, axis)
    assert reading.classes == classes
    assert reading.probabilities({"out": array}).shape[-1] == classes


@pytest.mark.parametrize(
    "array",
    [
        scores(4, 1),
        scores(4),
        scores(4, 3, 5, 6),
        scores(4, 10).astype(np.int64),
        scores(0, 10),
        scores(4, 10) / np.linalg.norm(scores(4, 10), axis=1, keepdims=True),
        np.array(["a", "b"]),
    ],
    ids=["one number", "no axis", "map", "integers", "empty", "embedding", "text"],
)
def test_what_does_not(array: np.ndarray) -> None:
    assert read_outputs({"out": array}) is None


def test_probabilities_come_before_scores() -> None:
    reading = read_outputs({"features": scores(4, 64), "p": softmax(scores(4, 10))})
    assert reading is not None
    assert reading.output == "p"


def test_all_kinds_give_the_same_probabilities() -> None:
    x = scores(4, 7, 10)
    expected = softmax(x.astype(np.float64))
    for array in (x, softmax(x), np.log(softmax(x))):
        np.testing.assert_allclose(probabilities(array), expected, rtol=1e-5, atol=1e-7)


def test_a_map_is_a_decision_for_each_pixel() -> None:
    p = softmax(scores(4, 3, 5, 6), axis=1)
    found = decisions(p)
    assert found.classes.shape == (4, 30)
    np.testing.assert_array_equal(found.classes, p.argmax(axis=1).reshape(4, 30))


def test_sure_is_99_percent() -> None:
    found = decisions(np.array([[0.99, 0.01], [0.98, 0.02], [0.0, 1.0]], np.float32))
    assert found.sure.ravel().tolist() == [True, False, True]


def tally(*batches: np.ndarray, first: np.ndarray | None = None) -> Tally:
    total = Tally()
    start = 0
    for batch in batches:
        mine = decisions(batch)
        other = mine if first is None else decisions(first[start : start + len(batch)])
        total.add(mine, other)
        start += len(batch)
    return total


def test_entropy_and_information_by_their_definitions() -> None:
    p = softmax(scores(6, 4, 5)).astype(np.float64)
    total = tally(p[:1].astype(np.float32), p[1:].astype(np.float32))
    entropies = [
        sum(-q * math.log(q) for row in sample for q in row) / len(sample) / math.log(5)
        for sample in p
    ]
    mean = p.mean(axis=(0, 1))
    marginal = sum(-q * math.log(q) for q in mean) / math.log(5)
    np.testing.assert_allclose(total.entropies, entropies, rtol=1e-5)
    assert total.entropy == pytest.approx(np.mean(entropies), rel=1e-5)
    assert total.information == pytest.approx(marginal - np.mean(entropies), rel=1e-4)
    assert total.count == 24


@pytest.mark.parametrize(
    ("rows", "entropy", "information"),
    [
        ([[1, 0], [0, 1]], 0, 1),  # sure, and each its own
        ([[1, 0], [1, 0]], 0, 0),  # sure, and all the same
        ([[0.5, 0.5], [0.5, 0.5]], 1, 0),  # a guess
    ],
)
def test_their_ends(rows: list[list[float]], entropy: float, information: float) -> None:
    total = tally(np.array(rows, np.float32))
    assert total.entropy == pytest.approx(entropy, abs=1e-6)
    assert total.information == pytest.approx(information, abs=1e-6)


def test_agreement_with_the_first_model() -> None:
    first = np.array([[1, 0, 0], [0.6, 0.4, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    mine = np.array([[1, 0, 0], [0.4, 0.6, 0], [0, 0, 1], [0, 0, 1]], np.float32)
    total = tally(mine[:3], mine[3:], first=first)
    assert total.agreement == 0.5
    assert total.sure == 0.75
    assert total.sure_kept == pytest.approx(2 / 3)
    assert total.classes == 3
    assert total.largest_share == 0.5


def test_without_a_sure_decision_none_is_kept() -> None:
    assert tally(np.full((3, 4), 0.25, np.float32)).sure_kept is None


def test_infinite_scores_are_no_probabilities() -> None:
    x = scores(4, 10)
    x[0, 0] = np.inf
    assert np.isnan(probabilities(x)[0]).any()
    x[0, 0] = -np.inf  # a masked class
    assert probabilities(x)[0, 0, 0] == 0


def test_of_several_possible_scores_the_named_one_is_read() -> None:
    outputs = {"features": scores(4, 64), "logits": scores(4, 10, seed=1)}
    assert read_outputs(outputs) is None
    found = read_outputs(outputs, "logits")
    assert str(found) == "'logits', read as scores of 10 classes"
    unit = outputs["logits"] / np.linalg.norm(outputs["logits"], axis=1, keepdims=True)
    assert read_outputs({"unit": unit}) is None
    assert read_outputs({"unit": unit}, "unit") == Reading("unit", "scores", -1, 10)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": scores(4, 10)}, "there is no output 'p' to read scores from: there are 'y'"),
        ({"p": scores(4, 1)}, r"2 classes or more, got output 'p': float32 \(4, 1\)"),
        ({"p": np.arange(8).reshape(2, 4)}, "got output 'p': int64"),
        ({"p": [np.ones(3)]}, "got output 'p': no tensor"),
    ],
)
def test_a_named_output_has_to_be_scores(outputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_outputs(outputs, "p")
