"""How much the data says of each node's statistics, and what warns against using them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

import cbn

from ...results import Report, counted
from ..measure.observed import Observed
from ..measure.targets import Target, Targets
from ..report.drift import CONSTANT
from .blend import PriorChoice
from .candidates import LEAST_SAMPLES
from .harm import harm
from .heldout import HeldOut

__all__ = ["EvidenceReport", "EvidenceRow", "evidence"]

MEAN_ERROR = 0.25
"""Standard error of a mean, in deviations, from which on a channel has too little data."""

VAR_ERROR = 0.5
"""The same of a variance, in parts of it."""

HALVES = 0.5
"""Difference of the halves of the data, in deviations, from which on they disagree."""

ALIKE = 1e-4
"""Deviation of the samples' means, in deviations of all values: below, they are all the same."""

LARGE_CHANGE = 1.0
"""Change of an output, in its deviations, above which it is doubted that scores are scores."""

SHARE = 0.1
"""The share of a node's channels that has to show a fault for a warning."""


@dataclasses.dataclass(frozen=True)
class EvidenceRow:
    """What the data says of the statistics of one node.

    Deviations are ``sqrt(var + eps)`` of the observed variance.

    Attributes
    ----------
    name : str
        The target: the first of the nodes that share the statistics.
    channels : int
    observations : int
        Values of each channel.
    samples : int
    effective_samples : float
        How many independent values the observations are worth, in the worst channel: var / standard
        error of the mean², and so not more than the observations. Neighbouring pixels are not
        independent. NaN where all samples have one mean, and with fewer than 2 samples.
    mean_error : float
        The largest standard error of a mean, in deviations: from the spread of the samples' means,
        but no less than that of as many independent values. Samples whose means are nearer to each
        other than that are few, or alike in their means (images of one brightness). NaN with fewer
        than 2 samples.
    var_error : float
        The largest standard error of a variance, in parts of the variance.
    constant_channels : int
        Channels that never vary on this data, and did in training.
    weak_channels : int
        Channels with too little data: a standard error of the mean above 0.25 deviations, or of the
        variance above half of it. All of them with fewer than 8 samples, whose errors are chance.
    split_half : float
        The largest difference of the halves of the data (samples of even and odd index), in
        deviations: of the means, or of the deviations themselves. NaN with fewer than 2 samples.
    ok : bool
        Whether there is no constant and no weak channel, and the halves agree.
    """

    name: str
    channels: int
    observations: int
    samples: int
    effective_samples: float
    mean_error: float
    var_error: float
    constant_channels: int
    weak_channels: int
    split_half: float
    ok: bool = True

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        return (
            self.name,
            str(self.observations),
            f"{self.effective_samples:.0f}",
            f"{self.mean_error:.3f}",
            f"{self.var_error:.3f}",
            str(self.constant_channels),
            str(self.weak_channels),
            f"{self.split_half:.3f}",
        )


@dataclasses.dataclass(frozen=True)
class EvidenceReport(Report):
    """A row for each node that was measured, and warnings in words.

    True when each row holds; the warnings say more, and do not change that.

    Attributes
    ----------
    rows : tuple of EvidenceRow
    warnings : tuple of str
        What speaks against using the statistics, each with the reason.
    few_samples : bool
        Whether one of them is that too few samples were measured.
    few_held_out : bool
        Whether one of them is that too few samples were held out, where some were.
    """

    rows: tuple[EvidenceRow, ...]
    warnings: tuple[str, ...] = ()
    few_samples: bool = False
    few_held_out: bool = False

    columns: ClassVar[tuple[str, ...]] = (
        "node",
        "values",
        "effective",
        "error of mean",
        "error of var",
        "constant",
        "too little data",
        "halves differ",
    )


def evidence(
    targets: Targets,
    statistics: Mapping[str, Observed],
    *,
    held_out: HeldOut | None = None,
    prior: PriorChoice | None = None,
    named: bool = False,
) -> EvidenceReport:
    """Weigh what was observed of each target, and what the outputs show.

    Parameters
    ----------
    targets : Targets
    statistics : mapping of str to Observed
        By target.
    held_out : HeldOut, optional
        The comparison of the models before and after.
    prior : PriorChoice, optional
        With its candidates, where it was chosen by the outputs: what the statistics of the data
        alone would have done is warned of, even if it was not done.
    named : bool, default: False
        Whether the user named the output of scores: whether it is one is not doubted then.

    Returns
    -------
    EvidenceReport
    """
    rows = tuple(_row(target, statistics[target.name]) for target in targets.targets)
    alike = all(_same_means(t, statistics[t.name]).all() for t in targets.targets)
    few = _of_few_samples(rows)
    few_held_out = held_out is not None and held_out.samples < LEAST_SAMPLES
    warnings = [
        *few,
        *_of_data(rows, alike),
        *_of_comparison(held_out, named),
        *harm(held_out, prior, nodes=len(rows), shift=_shift(targets, statistics)),
    ]
    return EvidenceReport(rows, tuple(warnings), bool(few), few_held_out)


def _row(target: Target, seen: Observed) -> EvidenceRow:
    deviation = np.sqrt(seen.values.var + target.eps)
    least_error = np.sqrt(seen.values.var / seen.values.count)
    mean_error = np.maximum(seen.mean_error, least_error) / deviation
    var_error = seen.var_error / (seen.values.var + target.eps)
    weak = ~((mean_error <= MEAN_ERROR) & (var_error <= VAR_ERROR))
    weak |= seen.samples < LEAST_SAMPLES
    constant = _constant(target, seen.values)
    effective = np.minimum(seen.effective_samples, seen.values.count)
    halves = _halves(target, seen)
    return EvidenceRow(
        name=target.name,
        channels=target.channels,
        observations=seen.values.count,
        samples=seen.samples,
        effective_samples=_least(effective[~constant & ~_same_means(target, seen)]),
        mean_error=float(mean_error.max()),
        var_error=float(var_error.max()),
        constant_channels=int(constant.sum()),
        weak_channels=int(weak.sum()),
        split_half=halves,
        ok=not constant.any() and not weak.any() and halves <= HALVES,
    )


def _least(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.min()) if known.size else float("nan")


def _constant(target: Target, seen: cbn.BatchStats) -> np.ndarray:
    size = seen.mean**2 + target.var
    return np.asarray((seen.var <= CONSTANT * size) & (target.var > target.eps))


def _halves(target: Target, seen: Observed) -> float:
    even, odd = seen.halves
    if even is None or odd is None:
        return float("nan")
    one, two = (np.sqrt(half.var + target.eps) for half in (even, odd))
    between = np.maximum(np.abs(even.mean - odd.mean), np.abs(one - two))
    return float((between / np.sqrt(seen.values.var + target.eps)).max())


def _same_means(target: Target, seen: Observed) -> np.ndarray:
    """In which channels the means of all samples are the same, as of one image again and again."""
    spread = seen.mean_error * np.sqrt(seen.samples)
    return np.asarray(spread <= ALIKE * np.sqrt(seen.values.var + target.eps))


def _shift(targets: Targets, statistics: Mapping[str, Observed]) -> float:
    """The shift of the middle channel of the middle node, in stored deviations."""
    shifts = [
        np.median(np.abs(statistics[t.name].values.mean - t.mean) / np.sqrt(t.var + t.eps))
        for t in targets.targets
    ]
    return float(np.median(shifts))


def _of_few_samples(rows: Sequence[EvidenceRow]) -> list[str]:
    samples = max(row.samples for row in rows)
    weak = _weak(rows)
    if samples < LEAST_SAMPLES:
        return [
            f"too few samples ({samples}, expected {LEAST_SAMPLES} or more): nothing tells how "
            "much others would vary, and the errors above are chance themselves"
        ]
    if weak:
        return [
            f"too few samples ({samples}): in {_nodes(weak)} the mean or the variance of more than "
            f"{SHARE:.0%} of the channels is hardly known"
        ]
    return []


def _weak(rows: Sequence[EvidenceRow]) -> list[EvidenceRow]:
    return [row for row in rows if row.weak_channels > SHARE * row.channels]


def _of_data(rows: Sequence[EvidenceRow], alike: bool) -> Iterator[str]:
    samples = max(row.samples for row in rows)
    weak = _weak(rows)
    if alike:
        yield (
            f"all {samples} samples are alike: their values say nothing of how others vary "
            "(constant or repeated images?)"
        )
    constant = [row for row in rows if row.constant_channels]
    if constant:
        channels = sum(row.constant_channels for row in constant)
        many = "channel of {} is" if channels == 1 else "channels of {} are"
        yield (
            f"{channels} {many.format(_nodes(constant))} constant on this data, and not in "
            "training: over a variance of 0, whatever varies there later is blown up"
        )
    split = [row for row in rows if row.split_half > HALVES and row not in weak]
    if split:
        worst = max(split, key=lambda row: row.split_half)
        yield (
            f"split halves of the data disagree in {_nodes(split)}, by up to "
            f"{worst.split_half:.1f} deviations: the data are too few or too mixed"
        )


def _nodes(rows: Sequence[EvidenceRow]) -> str:
    names = ", ".join(repr(row.name) for row in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"{counted(len(rows), 'node')} ({names}{more})"


def _of_comparison(held_out: HeldOut | None, named: bool) -> Iterator[str]:
    if held_out is None:
        yield "nothing was held out: what the new statistics do to the outputs is not known"
        return
    if held_out.kind == "values" and held_out.metric is None and held_out.change:
        yield (
            "no output reads as classes and there is no metric, so nothing tells whether the new "
            f"statistics help; the outputs change by {held_out.change:.2g} of their deviations"
        )
    doubtful = held_out.kind == "scores" and held_out.metric is None and not named
    if doubtful and LARGE_CHANGE < held_out.change < np.inf:
        yield (
            f"the outputs change by {held_out.change:.2g} of their deviations, and if "
            f"{held_out.output!r} is no scores of {held_out.num_classes} classes nothing tells "
            "whether that is good: name the output of scores, or give labels or a metric"
        )
    if not np.isfinite(held_out.change):
        yield "NaN or infinity stands in the outputs on held-out inputs, or their shapes change"
    if held_out.samples < LEAST_SAMPLES:
        yield (
            f"too few held-out samples ({held_out.samples}, expected {LEAST_SAMPLES} or more) to "
            "know what becomes of the outputs"
        )
    if held_out.worse:
        yield (
            f"{held_out.metric} got worse on the held-out inputs: {held_out.metric_before:.4g} -> "
            f"{held_out.metric_after:.4g}"
        )
