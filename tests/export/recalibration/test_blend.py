"""Blends of statistics, and the rule that chooses one."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from corruptions import DIGITS, contrast, load_digits
from onnx import helper
from onnx_models import batch_norm_node, make_model, parameters, run, single

from cbn.export.inputs import model_inputs
from cbn.export.recalibration.apply import apply_statistics
from cbn.export.recalibration.data.sources import open_source
from cbn.export.recalibration.judge.blend import (
    MOST_SAMPLES,
    WEIGHTS,
    blend,
    choose_prior,
    weight_of,
)
from cbn.export.recalibration.judge.candidates import Candidate, judge, with_stability
from cbn.export.recalibration.judge.decisions import Decisions, Tally, read_outputs
from cbn.export.recalibration.judge.fed import FedModel
from cbn.export.recalibration.measure.batch_pass import BatchPass
from cbn.export.recalibration.measure.observed import Observed
from cbn.export.recalibration.measure.targets import choose_targets

STORED = np.array([0.0, 4.0]), np.array([1.0, 9.0])


def observed(samples: int = 6, mean: float = 2.0) -> Observed:
    means = mean + np.random.default_rng(0).normal(size=(samples, 2))
    return Observed.of_samples(means, np.ones((samples, 2)) * 5, 10)


def values(samples: int) -> np.ndarray:
    return np.random.default_rng(3).normal(1, 2, (samples, 3, 5)).astype(np.float32)


def test_moments_are_weighted_by_samples() -> None:
    seen = observed(6)
    mean, var = blend(STORED, seen, 2)
    np.testing.assert_allclose(mean, (2 * STORED[0] + 6 * seen.values.mean) / 8, rtol=1e-15)
    np.testing.assert_allclose(var, (2 * STORED[1] + 6 * seen.values.var) / 8, rtol=1e-15)


def test_the_ends_are_one_side_to_the_bit() -> None:
    seen = observed()
    for prior, expected in ((0, (seen.values.mean, seen.values.var)), (math.inf, STORED)):
        for got, array in zip(blend(STORED, seen, prior), expected, strict=True):
            np.testing.assert_array_equal(got, array)


def test_what_is_stored_and_broken_counts_nothing_without_a_prior() -> None:
    broken = np.array([np.nan, np.inf])
    assert np.isfinite(blend((broken, broken), observed(), 0)).all()


@pytest.mark.parametrize("prior", [-1, math.nan])
def test_a_prior_is_a_number_of_samples(prior: float) -> None:
    with pytest.raises(ValueError, match="samples >= 0"):
        blend(STORED, observed(), prior)


@pytest.mark.parametrize(("prior", "weight"), [(0, 0), (30, 0.75), (math.inf, 1)])
def test_weight_of_a_prior(prior: float, weight: float) -> None:
    assert weight_of(prior, 10) == weight


def tally(p: list[list[float]], first: list[list[float]]) -> Tally:
    """Sums over decisions between two classes, one a sample."""
    arrays = [np.array(rows, np.float32) for rows in (p, first)]
    reading = read_outputs({"p": arrays[0]})
    assert reading is not None
    mine, other = (Decisions.of(reading, {"p": array}) for array in arrays)
    total = Tally()
    total.add(mine, other)
    return total


def rows(*probabilities: float) -> list[list[float]]:
    return [[p, 1 - p] for p in probabilities]


UNSURE = rows(*[0.8, 0.2, 0.7, 0.3] * 4)
SURE = rows(*[0.999, 0.001] * 8)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (UNSURE, SURE, ""),
        (UNSURE, UNSURE, "not be surer"),
        (UNSURE, rows(*[0.82, 0.18, 0.72, 0.28] * 4), "not be surer"),
        (SURE, UNSURE, "less sure"),
        (UNSURE, rows(*[1.0] * 16), "same for all inputs"),
        (UNSURE, rows(*[0.999] * 14, *[0.001] * 2), ""),
        (rows(*[0.9, 0.1] * 8), rows(*[0.999] * 14, *[0.001] * 2), ""),
        (rows(*[0.97, 0.03] * 8), rows(*[0.999] * 15, 0.001), "less of the inputs"),
        (rows(*[0.995, 0.005] * 4, *[0.6, 0.4] * 4), rows(*[0.001, 0.999] * 8), "is sure of"),
        (rows(*[0.6, 0.5] * 8), rows(*[0.9, 0.1] * 8), "expected a fall by 80%"),
        (rows(*[0.6, 0.5] * 8), SURE, ""),
        (rows(*[0.999, 0.001] * 8, 0.4), rows(*[0.999, 0.001] * 8, 0.001), "not be surer"),
    ],
    ids=[
        "surer",
        "the same",
        "hardly surer",
        "less sure",
        "collapsed",
        "uneven",
        "uneven and sure before",
        "one class gone",
        "sure ones turned",
        "from nothing to little",
        "from nothing to all",
        "one sample alone",
    ],
)
def test_the_rule(before: list[list[float]], after: list[list[float]], reason: str) -> None:
    candidate = judge(0.3, tally(after, before), tally(before, before))
    assert candidate.ok == (not reason), candidate
    assert reason in candidate.reason
    assert candidate.weight == 0.3


def test_a_nan_is_never_allowed() -> None:
    broken = [[math.nan, math.nan], *SURE[1:]]
    reading = read_outputs({"p": np.array(SURE, np.float32)})
    assert reading is not None
    mine, first = (Decisions.of(reading, {"p": np.array(p, np.float32)}) for p in (broken, UNSURE))
    total, stored = Tally(), Tally()
    total.add(mine, first)
    stored.add(first, first)
    assert not judge(0.0, total, stored).ok


@pytest.mark.parametrize(("stability", "ok"), [(0.84, False), (0.85, True)])
def test_the_halves_have_to_agree(stability: float, ok: bool) -> None:
    candidate = judge(0.0, tally(SURE, UNSURE), tally(UNSURE, UNSURE))
    after = with_stability(candidate, stability)
    assert after.ok == ok
    assert after.stability == stability
    assert ("either half" in after.reason) != ok


def measured(model, data, fixed: int = 0):
    """Targets, the first four fifths measured, and the rest (or one batch) as held-out inputs."""
    targets = choose_targets(model)
    source = open_source(data, model_inputs(targets.model), batch_size=None if fixed else 64)
    cut = source.samples - fixed if fixed else source.samples * 4 // 5
    fit, held = source.select([(0, cut)]), source.select([(cut, source.samples)])
    measure = BatchPass(targets, num_threads=1)
    parts = [measure(feeds, first) for feeds, first in fit.numbered()]
    return targets, {n: sum(part[n] for part in parts) for n in parts[0]}, held


def test_all_weights_are_tried_and_told() -> None:
    images = contrast(load_digits()[0])
    choice = choose_prior(*measured(DIGITS / "digits.onnx", images), num_threads=1)
    assert [c.weight for c in choice.candidates] == [1, *sorted(WEIGHTS, reverse=True)]
    assert choice.weight == choice.prior == 0
    chosen = choice.candidates[-1]
    assert chosen.ok
    assert chosen.stability > 0.85
    assert chosen.entropy == min(c.entropy for c in choice.candidates)
    assert "falls from" in choice.reason


def test_prior_and_weight_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[blend.__module__]
    monkeypatch.setattr(module, "WEIGHTS", (0.0, 0.5))
    monkeypatch.setattr(module, "_stability", lambda *given: given[-1])  # the weight
    monkeypatch.setattr("cbn.export.recalibration.judge.candidates.STABLE", 0.5)
    choice = choose_prior(*measured(DIGITS / "digits.onnx", contrast(load_digits()[0])))
    assert choice.weight == 0.5  # the weight of 0 gave the lower entropy, and was not stable
    assert choice.prior == 360
    assert [c.stability for c in choice.candidates] == [None, 0.5, 0.0]


def test_of_the_allowed_the_surest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_distance(weight, mine, stored) -> Candidate:
        return Candidate(weight, weight < 0.8, "", abs(weight - 0.5), 0.5, 1.0)

    module = sys.modules[blend.__module__]
    monkeypatch.setattr(module, "judge", by_distance)
    monkeypatch.setattr(module, "_stability", lambda *given: 1.0)
    choice = choose_prior(*measured(DIGITS / "digits.onnx", contrast(load_digits()[0])))
    assert choice.weight == 0.5


def test_halves_that_part_the_decisions_are_found() -> None:
    clean = load_digits()[0]
    targets, statistics, held = measured(DIGITS / "digits.onnx", contrast(clean))
    others = measured(DIGITS / "digits.onnx", clean)[1]
    parted = {
        name: dataclasses.replace(seen, halves=(seen.halves[0], others[name].halves[1]))
        for name, seen in statistics.items()
    }
    choice = choose_prior(targets, parted, held, num_threads=1)
    assert choice.candidates[-1].stability < 0.85
    assert "either half" in choice.candidates[-1].reason


def test_without_classes_the_stored_statistics_stay() -> None:
    choice = choose_prior(*measured(single(shape=("N", 3, "H", "W")), values(60)[..., None]))
    assert math.isinf(choice.prior)
    assert choice.weight == 1
    assert choice.candidates == ()
    assert "no output reads as classes" in choice.reason


def test_with_few_held_out_samples_they_stay_too() -> None:
    choice = choose_prior(*measured(DIGITS / "digits.onnx", load_digits()[0][:35]))
    assert math.isinf(choice.prior)
    assert "7 held-out samples to judge by" in choice.reason


class Counted:
    """A source that counts the samples that are read of it."""

    def __init__(self, source) -> None:
        self._source, self.read = source, 0

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def __iter__(self):
        for feeds in self._source:
            self.read += len(next(iter(feeds.values())))
            yield feeds

    def select(self, runs):
        self.part = Counted(self._source.select(runs))
        return self.part


def test_of_many_held_out_samples_some_are_enough() -> None:
    many = np.tile(load_digits()[0], (15, 1, 1, 1))
    targets, statistics, held = measured(DIGITS / "digits.onnx", many)
    counted = Counted(held)
    choose_prior(targets, statistics, counted, num_threads=1)
    assert held.samples > MOST_SAMPLES
    assert counted.read == 0
    assert counted.part.read == MOST_SAMPLES


def test_one_batch_of_a_fixed_size_is_not_parted() -> None:
    model = onnx.load(DIGITS / "digits.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 600
    many = contrast(np.tile(load_digits()[0], (4, 1, 1, 1)))
    targets, statistics, held = measured(model, many, fixed=600)
    assert held.samples == 600 > MOST_SAMPLES
    told = []
    choice = choose_prior(targets, statistics, held, progress=lambda *given: told.append(given))
    assert choice.weight == 0
    assert told == [("choosing", 1, 1)]


def test_a_fed_model_gives_what_the_written_one_gives() -> None:
    node = [batch_norm_node(y="h"), batch_norm_node("h"), helper.make_node("Relu", ["h"], ["z"])]
    shared = make_model(node, outputs=("y", "z"))
    targets = choose_targets(shared)
    assert [target.members for target in targets.targets] == [("bn_h", "bn_y")]
    given = {"bn_h": (np.array([0.5, 1, 2]), np.array([1.5, 0.25, 3]))}
    x = values(4)
    found = FedModel(targets, num_threads=1).run({"x": x}, given)
    written = ir.to_proto(apply_statistics(targets, given))
    assert set(found) == {"y", "z"}
    for name, expected in run(written, x, optimize=False).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["y"], run(shared, x)["y"])


def test_a_model_in_training_mode_is_fed_in_eval_mode() -> None:
    targets = choose_targets(single(training=True, outputs=("y",)))
    x, given = values(4), parameters()
    found = FedModel(targets).run({"x": x}, {"bn_y": (given["m"], given["v"])})["y"]
    np.testing.assert_allclose(found, run(single(), x)["y"], rtol=1e-5, atol=1e-6)
