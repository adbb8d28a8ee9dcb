"""The rule by which a blend of statistics is allowed, without labels: what its outputs show."""

from __future__ import annotations

import dataclasses

import numpy as np

from .decisions import SURE, Tally

__all__ = [
    "LEAST_SAMPLES",
    "LITTLE_INFORMATION",
    "RISE",
    "Candidate",
    "as_stored",
    "judge",
    "with_stability",
]

LEAST_SAMPLES = 8
"""Held-out samples without which nothing is judged."""

SURER = 0.2
ERRORS = 2.0
"""Outputs are surer where their mean entropy falls by this part and by these standard errors."""

LITTLE_INFORMATION = 0.15
MUCH_SURER = 0.8
"""Outputs that said so little of the inputs, in parts of log K, have to be so much surer: there was
nothing to compare with, and noise can be answered in many ways too."""

RISE = 1.2
"""They are less sure where it rises to this multiple."""

LEAST_INFORMATION = 0.05
"""Of log K: below, all inputs are answered alike, and there is nothing to judge by."""

SURE_KEPT = 0.9
"""The share of the sure decisions that has to stay."""

STABLE = 0.85
"""The share of decisions that both halves of the data have to give alike."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One weight that was tried, and what the outputs on held-out inputs say of it.

    Attributes
    ----------
    weight : float
        On the stored statistics.
    ok : bool
        Whether the rule allows it.
    reason : str
        Why it is not allowed, or what speaks for it.
    entropy, information : float
        Mean entropy of the decisions, and what they say of the inputs, in parts of log K.
    agreement : float
        The share of the decisions that are those under the stored statistics.
    sure_kept : float or None
        The same, of those that were sure (0.99 or more) under the stored statistics.
    stability : float or None
        The share of decisions that the statistics of either half of the samples give alike; None
        where the rule did not come to it.
    """

    weight: float
    ok: bool
    reason: str
    entropy: float
    information: float
    agreement: float
    sure_kept: float | None = None
    stability: float | None = None


def as_stored(stored: Tally) -> Candidate:
    """The stored statistics, which are always allowed."""
    return Candidate(
        1.0,
        ok=True,
        reason="what is stored",
        entropy=stored.entropy,
        information=stored.information,
        agreement=1.0,
        sure_kept=stored.sure_kept,
    )


def judge(weight: float, mine: Tally, stored: Tally) -> Candidate:
    """Judge a weight by its outputs and those under the stored statistics: see `choose_prior`."""
    reason = _why_not(mine, stored)
    gain = f"the mean entropy of the outputs falls from {stored.entropy:.3f} to {mine.entropy:.3f}"
    return Candidate(
        weight,
        ok=not reason,
        reason=reason or gain,
        entropy=mine.entropy,
        information=mine.information,
        agreement=mine.agreement,
        sure_kept=mine.sure_kept,
    )


def _why_not(mine: Tally, stored: Tally) -> str:
    """Say which condition does not hold, in words; empty when all do."""
    fall = stored.entropies - mine.entropies
    error = float(fall.std(ddof=1) / np.sqrt(fall.size))
    if not mine.information >= LEAST_INFORMATION:
        return (
            "the outputs are nearly the same for all inputs (information "
            f"{mine.information:.3f} of at most 1, expected {LEAST_INFORMATION} or more)"
        )
    part = MUCH_SURER if stored.information < LITTLE_INFORMATION else SURER
    if not fall.mean() >= max(part * stored.entropy, ERRORS * error):
        words = "be less sure" if mine.entropy > RISE * stored.entropy else "not be surer"
        return (
            f"the outputs would {words} (mean entropy {stored.entropy:.3f} -> {mine.entropy:.3f}, "
            f"expected a fall by {part:.0%} and by {ERRORS:.0f} standard errors of {error:.3f})"
        )
    if not mine.information >= stored.information:
        return (
            "the outputs would say less of the inputs (information "
            f"{stored.information:.3f} -> {mine.information:.3f})"
        )
    if mine.sure_kept is not None and mine.sure_kept < SURE_KEPT:
        return (
            f"{1 - mine.sure_kept:.0%} of the decisions that the model is sure of (probability "
            f"{SURE} or more) would change"
        )
    return ""


def with_stability(candidate: Candidate, stability: float) -> Candidate:
    """Add what both halves of the data say of a candidate; it may fail by it."""
    if stability >= STABLE:
        return dataclasses.replace(candidate, stability=stability)
    return dataclasses.replace(
        candidate,
        ok=False,
        stability=stability,
        reason=f"the statistics of either half of the data give the same decision in "
        f"{stability:.0%} of all cases, expected {STABLE:.0%} or more: there is too little data, "
        "or small errors add up over the layers",
    )
