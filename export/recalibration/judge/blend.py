"""Blend stored with observed statistics, and choose without labels how much of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

import cbn

from ...results import counted
from ...sessions import Providers
from ..data.sources import Source, split
from ..measure.executors import Progress
from ..measure.observed import Observed
from ..measure.targets import Targets
from ..rows import Moments
from .candidates import LEAST_SAMPLES, Candidate, as_stored, judge, with_stability
from .decisions import Decisions, Reading, Tally, read_outputs
from .fed import FedModel

__all__ = ["Candidate", "PriorChoice", "blend", "choose_prior", "weight_of"]

WEIGHTS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""The weights on the stored statistics that are tried."""

MOST_SAMPLES = 500
"""Held-out samples that are enough to judge by; of more, some from everywhere are used."""


def weight_of(prior: float, samples: int) -> float:
    """Weight on the stored statistics, ``prior / (prior + samples)``; 1 for an infinite prior."""
    return 1.0 if math.isinf(prior) else prior / (prior + samples)


def blend(stored: Moments, seen: Observed, prior: float) -> Moments:
    """Blend stored statistics with those of the data, as if they came from `prior` samples.

    With n samples seen, both the mean and the population variance become
    ``weight * stored + (1 - weight) * seen``, where ``weight = prior / (prior + n)``.

    Parameters
    ----------
    stored : tuple of ndarray, shape (C,)
        Mean and population variance.
    seen : Observed
    prior : float
        0 leaves nothing of the stored statistics, ``math.inf`` nothing else.

    Returns
    -------
    tuple of ndarray of float64, shape (C,)

    Raises
    ------
    ValueError
        When `prior` is negative or NaN.

    Notes
    -----
    Source: Schneider et al., "Improving robustness against common corruptions by covariate shift
    adaptation", NeurIPS 2020, where N is `prior`. As there, n counts samples (images) and not
    values: the values of one image depend on each other, and a weight that counted them would
    change with the resolution of a layer. Variances are averaged as there, without the term for the
    distance of the two means that a pooled variance has.
    """
    if not prior >= 0:
        raise ValueError(f"expected prior to be a number of samples >= 0, got {prior!r}")
    return _mix(stored, seen.values, weight_of(prior, seen.samples))


def _mix(stored: Moments, seen: cbn.BatchStats, weight: float) -> Moments:
    """Weighted means of the moments; all of one side is that side to the bit."""
    pairs = zip(stored, (seen.mean, seen.var), strict=True)
    mean, var = (
        old if weight == 1 else now if weight == 0 else weight * old + (1 - weight) * now
        for old, now in pairs
    )
    return np.asarray(mean, np.float64), np.asarray(var, np.float64)


@dataclasses.dataclass(frozen=True)
class PriorChoice:
    """How much the stored statistics count.

    Attributes
    ----------
    prior : float
        In samples; infinite where the stored statistics stay.
    weight : float
        The same as a share, from 0 to 1.
    candidates : tuple of Candidate
        What was tried, by falling weight: the stored statistics first, those of the data alone
        last. Empty where nothing was to be chosen, or nothing could be judged.
    reason : str
        Why it is this one.
    """

    prior: float
    weight: float
    candidates: tuple[Candidate, ...] = ()
    reason: str = ""


def choose_prior(
    targets: Targets,
    statistics: Mapping[str, Observed],
    held_out: Source,
    *,
    scores: str | None = None,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> PriorChoice:
    """Choose, without labels, how much the stored statistics count.

    Weights of 0, 0.1, 0.3, 0.5, 0.7 and 0.9 on the stored statistics are tried on the held-out
    inputs, against the stored statistics alone. A weight is allowed where

    1. the outputs are surer: their mean entropy falls by a fifth or more, and by two standard
       errors; by four fifths where they said next to nothing of the inputs before (less than 0.15
       of the mutual information in 2);
    2. they say as much of the inputs: the mutual information of input and decision does not fall,
       and is a twentieth or more of what is possible;
    3. what was sure stays: 90 % of the decisions with a probability of 0.99 or more are the same;
    4. the data carries it: the statistics of either half of the samples give the same decision in
       85 % of all cases.

    Of the allowed the one with the lowest entropy is taken. Where none is, the stored statistics
    stay; also with fewer than 8 held-out samples, and where no output reads as classes, since
    nothing then tells without labels whether a change is for the better.

    Parameters
    ----------
    targets : Targets
    statistics : mapping of str to Observed
        By target.
    held_out : Source
        Inputs that took no part in the statistics. Of more than 500 samples, 500 from everywhere
        are used.
    scores : str, optional
        The output that holds the scores of classes; found by ``read_outputs`` otherwise, which also
        takes the only output of shape (N, K) of a regression for scores.
    providers, num_threads
        As for ``make_session``.
    progress : callable, optional
        Called as ``progress("choosing", batches done, of how many)``.

    Returns
    -------
    PriorChoice

    Notes
    -----
    Each condition is there for data on which others fail. On data of one class, new statistics make
    the outputs less sure (1). A text recogniser that answers nothing but blanks is surer than
    before, and says nothing (2). Errors that add up over many layers part the halves (4).

    Entropy as a sign of fit without labels: Wang et al., "Tent: Fully test-time adaptation by
    entropy minimization", ICLR 2021. The information of decisions: Bridle, Heading and MacKay,
    "Unsupervised classifiers, mutual information and 'phantom targets'", NeurIPS 1991.
    """
    samples = held_out.samples
    if samples is not None and samples > max(MOST_SAMPLES, _unparted(held_out)):
        held_out = split(held_out, MOST_SAMPLES / samples)[1]
    elif samples is not None and samples < LEAST_SAMPLES:
        return _stored(_too_few(samples))
    model = FedModel(targets, providers=providers, num_threads=num_threads)
    values = {name: seen.values for name, seen in statistics.items()}
    given = [_blended(targets, values, weight) for weight in (1.0, *WEIGHTS)]
    reading, (stored, *others) = _tally(model, held_out, given, scores, progress)
    if reading is None:
        return _stored(
            "no output reads as classes, or several do, so nothing tells without labels whether a "
            "change is for the better; name the output of scores, or give prior as a number, and a "
            "metric to see what it does"
        )
    if len(stored.entropies) < LEAST_SAMPLES:
        return _stored(_too_few(len(stored.entropies)))
    judged = {w: judge(w, tally, stored) for w, tally in zip(WEIGHTS, others, strict=True)}
    chosen: Candidate | None = None
    for candidate in sorted((c for c in judged.values() if c.ok), key=lambda c: c.entropy):
        stability = _stability(
            model, targets, statistics, held_out, reading.output, candidate.weight
        )
        chosen = judged[candidate.weight] = with_stability(candidate, stability)
        if chosen.ok:
            break
    ordered = [judged[weight] for weight in sorted(WEIGHTS, reverse=True)]
    candidates = (as_stored(stored), *ordered)
    if chosen is None or not chosen.ok:
        why = f"with those of the data alone {judged[0.0].reason}; judged by {reading}"
        return _stored(why, candidates)
    measured = min(seen.samples for seen in statistics.values())
    prior = measured * chosen.weight / (1 - chosen.weight)
    reason = f"{chosen.reason}; judged by {reading}"
    return PriorChoice(prior, chosen.weight, candidates, reason)


def _unparted(source: Source) -> int:
    """Up to how many samples `split` cannot part a source: it keeps batches of one size whole."""
    return 2 * source.batch_size - 1 if source.fixed else 1


def _stored(why: str, candidates: tuple[Candidate, ...] = ()) -> PriorChoice:
    return PriorChoice(math.inf, 1.0, candidates, f"the stored statistics stay: {why}")


def _too_few(samples: int) -> str:
    held = counted(samples, "held-out sample")
    return f"{held} to judge by, expected {LEAST_SAMPLES} or more"


def _blended(
    targets: Targets, seen: Mapping[str, cbn.BatchStats], weight: float
) -> dict[str, Moments]:
    return {t.name: _mix((t.mean, t.var), seen[t.name], weight) for t in targets.targets}


def _tally(
    model: FedModel,
    held_out: Source,
    candidates: Sequence[Mapping[str, Moments]],
    scores: str | None = None,
    progress: Progress | None = None,
) -> tuple[Reading | None, list[Tally]]:
    """Run all candidates on each batch, compared with the first; empty tallies without classes."""
    reading = None
    tallies = [Tally() for _ in candidates]
    for number, feeds in enumerate(held_out, 1):
        first = None
        for statistics, tally in zip(candidates, tallies, strict=True):
            outputs = model.run(feeds, statistics)
            reading = reading or read_outputs(outputs, scores)
            if reading is None:
                return None, tallies
            decisions = Decisions.of(reading, outputs)
            first = first or decisions
            tally.add(decisions, first)
        if progress is not None:
            progress("choosing", number, held_out.batches)
    return reading, tallies


def _stability(
    model: FedModel,
    targets: Targets,
    statistics: Mapping[str, Observed],
    held_out: Source,
    scores: str,
    weight: float,
) -> float:
    """The share of decisions that the statistics of either half of the samples give alike."""
    halves = []
    for index in (0, 1):
        seen = {name: observed.halves[index] for name, observed in statistics.items()}
        present = {name: half for name, half in seen.items() if half is not None}
        if len(present) < len(seen):
            return 0.0
        halves.append(_blended(targets, present, weight))
    return _tally(model, held_out, halves, scores)[1][1].agreement
