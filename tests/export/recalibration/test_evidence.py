"""What the data says of each node, and the warnings, each for its reason."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from onnx_models import batch_norm_node, make_model, parameters, single

from cbn.export.recalibration.judge.blend import PriorChoice
from cbn.export.recalibration.judge.candidates import Candidate
from cbn.export.recalibration.judge.evidence import evidence
from cbn.export.recalibration.judge.harm import harm
from cbn.export.recalibration.judge.heldout import HeldOut
from cbn.export.recalibration.measure.observed import Observed
from cbn.export.recalibration.measure.targets import choose_targets

SAMPLES, LENGTH = 64, 16

GOOD = HeldOut(
    samples=40,
    decisions=40,
    output="p",
    kind="scores",
    agreement=0.9,
    sure=0.5,
    confident_agreement=1.0,
    entropy_before=0.3,
    entropy_after=0.1,
    information_before=0.5,
    information_after=0.6,
    classes_before=4,
    classes_after=4,
    largest_share_before=0.4,
    largest_share_after=0.3,
)


def values(samples: int = SAMPLES, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).normal(1, 2, (samples, 3, length))


def seen(x: np.ndarray) -> Observed:
    means = x.mean(axis=2)
    return Observed.of_samples(means, ((x - means[..., None]) ** 2).sum(axis=2), x.shape[2])


def report(x: np.ndarray, held_out: HeldOut | None = GOOD, prior: PriorChoice | None = None):
    return evidence(choose_targets(single()), {"bn_y": seen(x)}, held_out=held_out, prior=prior)


def warned(x: np.ndarray, words: str, **given) -> bool:
    return any(words in warning for warning in report(x, **given).warnings)


def test_good_data_gives_a_row_and_no_warning() -> None:
    found = report(values())
    assert found
    assert found.warnings == ()
    (row,) = found.rows
    assert (row.name, row.channels) == ("bn_y", 3)
    assert (row.observations, row.samples) == (SAMPLES * LENGTH, SAMPLES)
    assert row.constant_channels == row.weak_channels == 0
    assert 0 < row.split_half < 0.5
    json.dumps(found.to_dict())
    assert "bn_y" in str(found)


def test_errors_are_those_of_the_worst_channel() -> None:
    x = values()
    x[:, 1] += 3 * np.random.default_rng(1).normal(size=(SAMPLES, 1))  # what samples have in common
    (row,) = report(x).rows
    worst = x[:, 1]
    error = worst.mean(axis=1).std(ddof=1) / np.sqrt(SAMPLES)
    assert row.mean_error == pytest.approx(error / worst.std(), rel=1e-4)
    assert row.effective_samples == pytest.approx(worst.var() / error**2, rel=1e-4)
    assert row.effective_samples < 2 * SAMPLES < row.observations / 4


@pytest.mark.parametrize("spread", [0.01, 0.001])
def test_no_data_is_worth_more_values_than_it_has(spread: float) -> None:
    generator = np.random.default_rng(4)
    x = generator.normal(size=(5, 3, LENGTH))
    x -= x.mean(axis=2, keepdims=True)  # samples of one brightness, nearly
    x += spread * generator.normal(size=(5, 3, 1))
    assert (seen(x).effective_samples > 5 * LENGTH).all()
    (row,) = report(x).rows
    assert row.effective_samples == row.observations == 5 * LENGTH
    assert row.mean_error == pytest.approx(1 / np.sqrt(5 * LENGTH), rel=1e-4)


def test_of_samples_that_are_alike_nobody_knows_what_they_are_worth() -> None:
    (row,) = report(np.repeat(values(1), SAMPLES, axis=0)).rows
    assert np.isnan(row.effective_samples)


def test_correlated_samples_are_too_little_data() -> None:
    x = np.repeat(np.random.default_rng(2).normal(size=(10, 3, 1)), LENGTH, axis=2)
    (row,) = report(x).rows
    assert row.weak_channels == 3
    assert not row.ok
    assert warned(x, "too few samples (10): in 1 node ('bn_y')")
    assert report(x).few_samples


def test_a_single_sample_has_no_errors() -> None:
    (row,) = report(values(1)).rows
    assert np.isnan(row.mean_error)
    assert np.isnan(row.split_half)
    assert row.weak_channels == 3
    assert not row.ok
    assert warned(values(1), "too few samples (1, expected 8 or more)")


@pytest.mark.parametrize("samples", [4, 7, 8])
def test_few_samples_are_too_little_data_however_even(samples: int) -> None:
    x = values(samples, 4096)
    found = report(x)
    few = samples < 8
    assert (found.few_samples, found.rows[0].weak_channels, not found) == (few, 3 * few, few)
    assert warned(x, f"too few samples ({samples}, expected 8 or more)") == few


def test_samples_that_are_alike() -> None:
    assert warned(np.repeat(values(1), SAMPLES, axis=0), "all 64 samples are alike")


def test_constant_channels() -> None:
    x = values()
    x[:, 2] = 5
    found = report(x)
    assert found.rows[0].constant_channels == 1
    assert not found
    assert "1 channel of 1 node ('bn_y') is constant" in found.warnings[0]


def test_a_channel_that_never_varied_is_no_news() -> None:
    arrays = {**parameters(), "v": np.array([1, 1, 0], np.float32)}
    targets = choose_targets(make_model([batch_norm_node()], arrays=arrays))
    x = values()
    x[:, 2] = 5
    found = evidence(targets, {"bn_y": seen(x)}, held_out=GOOD)
    assert found.rows[0].constant_channels == 0
    assert found.warnings == ()


def test_halves_that_disagree() -> None:
    x = values()
    x[::2, 0] += 3
    (row,) = report(x).rows
    even, odd = x[::2, 0], x[1::2, 0]
    assert row.split_half == pytest.approx((even.mean() - odd.mean()) / x[:, 0].std(), rel=1e-4)
    assert warned(x, "split halves of the data disagree in 1 node ('bn_y'), by up to 1.")
    spread = values()
    spread[::2, 0] *= 4
    assert warned(spread, "split halves")


def test_nothing_or_too_little_held_out() -> None:
    assert warned(values(), "nothing was held out", held_out=None)
    few = dataclasses.replace(GOOD, samples=3, decisions=3)
    assert warned(values(), "too few held-out samples (3", held_out=few)
    assert report(values(), held_out=few).few_held_out
    assert not report(values()).few_held_out


def test_a_metric_that_fell() -> None:
    fallen = dataclasses.replace(
        GOOD, metric="top-1 accuracy", metric_before=0.99, metric_after=0.88
    )
    text = "top-1 accuracy got worse on the held-out inputs: 0.99 -> 0.88"
    assert warned(values(), text, held_out=fallen)


def harms(held_out: HeldOut | None, prior=None, nodes: int = 1, shift: float = 0.1) -> list[str]:
    return list(harm(held_out, prior, nodes=nodes, shift=shift))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"entropy_after": 0.4}, "less sure: mean entropy 0.300 -> 0.400"),
        ({"information_after": 0.3}, "less of the inputs: information 0.500 -> 0.300"),
        ({"confident_agreement": 0.6}, "40% of the decisions change that the model was sure of"),
    ],
)
def test_outputs_that_are_spoilt(changed: dict[str, float], words: str) -> None:
    (text,) = harms(dataclasses.replace(GOOD, **changed))
    assert words in text
    assert "under the new statistics" in text


def test_inputs_of_which_nothing_is_said() -> None:
    noise = dataclasses.replace(GOOD, information_before=0.04, entropy_after=0.2)
    (text,) = harms(noise)
    assert "next to nothing of these inputs (information 0.040" in text
    assert harms(dataclasses.replace(noise, entropy_after=0.05)) == []
    assert harms(dataclasses.replace(noise, samples=5, decisions=5)) == []


def test_changes_that_nobody_notices_are_no_harm() -> None:
    tiny = dataclasses.replace(GOOD, entropy_before=0.001, entropy_after=0.003)
    assert harms(dataclasses.replace(tiny, information_before=0.003, information_after=0.0)) == []


def test_small_errors_add_up_over_many_nodes() -> None:
    spoilt = dataclasses.replace(GOOD, confident_agreement=0.6)
    assert "add up over 32 nodes" in harms(spoilt, nodes=32)[-1]
    assert len(harms(spoilt, nodes=32, shift=2.0)) == 1
    assert len(harms(GOOD, nodes=32)) == 0


def test_one_class_explains_harm() -> None:
    alike = dataclasses.replace(GOOD, largest_share_before=0.95)
    assert harms(alike) == []
    spoilt = dataclasses.replace(alike, entropy_after=0.9)
    assert "may be of one class: 95% of the decisions" in harms(spoilt)[0]
    # Most steps of a text are blank, most pixels background: that is no class of the data.
    assert not any("one class" in w for w in harms(dataclasses.replace(spoilt, decisions=1600)))


def test_what_was_not_done_is_warned_of() -> None:
    stored = Candidate(1.0, True, "", 0.1, 0.5, 1.0, 1.0)
    alone = Candidate(0.0, False, "", 0.4, 0.2, 0.4, 0.5, 0.6)
    choice = PriorChoice(float("inf"), 1.0, (stored, alone), "")
    same = dataclasses.replace(GOOD, entropy_after=0.3, information_after=0.5)
    texts = harms(same, choice)
    assert len(texts) == 4
    assert all("under the statistics of this data alone" in text for text in texts)
    assert "other decisions in 40%" in texts[-1]
    chosen = dataclasses.replace(choice, weight=0.0, prior=0.0)
    assert harms(GOOD, chosen) == []


def test_outputs_without_classes_say_nothing() -> None:
    assert harms(HeldOut(40, change=9.0)) == []
    assert harms(None) == []
