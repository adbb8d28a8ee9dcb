"""Warnings from the outputs: what new statistics would spoil, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from .blend import PriorChoice
from .candidates import LEAST_SAMPLES, LITTLE_INFORMATION, RISE, STABLE, SURE_KEPT
from .decisions import SURE
from .heldout import HeldOut

__all__ = ["harm"]

ONE_CLASS = 0.8
"""The share of the decisions from which on they are called of one class."""

LOSS = 0.95
"""Outputs say less of the inputs when no more than this share of the information is left."""

UNSURE = 0.1
"""Mean entropy, in parts of log K, from which on outputs are called unsure."""

NOTICEABLE = 0.005
"""Smaller changes of entropy and information, in parts of log K, are not warned of."""

MANY_NODES = 10
SMALL_SHIFT = 0.5
"""Small errors add up: over so many nodes, whose middle channel shifts by less deviations."""


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What some statistics do to the outputs in place of the stored ones."""

    name: str
    entropy: tuple[float, float]  # before and after
    information: tuple[float, float]
    sure_kept: float | None
    stability: float | None

    @property
    def less_sure(self) -> bool:
        before, after = self.entropy
        return after > max(RISE * before, before + NOTICEABLE)

    @property
    def says_less(self) -> bool:
        before, after = self.information
        return after < min(LOSS * before, before - NOTICEABLE)


def harm(
    held_out: HeldOut | None, prior: PriorChoice | None, *, nodes: int, shift: float
) -> Iterator[str]:
    """Say what the outputs on held-out inputs warn of.

    Where the stored statistics were kept by the rule, the warnings are of what those of the data
    alone would have done.

    Parameters
    ----------
    held_out : HeldOut or None
    prior : PriorChoice or None
    nodes : int
        How many were measured.
    shift : float
        How far their means are from the stored ones, in stored deviations: of the middle channel of
        the middle node.
    """
    outcome = _outcome(held_out, prior)
    if outcome is None:
        return
    found = list(_spoilt(outcome))
    if held_out is not None and held_out.samples >= LEAST_SAMPLES:
        if found:
            yield from _one_class(held_out)
        yield from _nothing_said(outcome)
    yield from found
    if found and nodes >= MANY_NODES and shift < SMALL_SHIFT:
        yield (
            f"the shifts are small ({shift:.2f} deviations in the middle), but errors add up over "
            f"{nodes} nodes: prefer a blend (a larger prior), fewer nodes, or the stored statistics"
        )


def _outcome(held_out: HeldOut | None, prior: PriorChoice | None) -> _Outcome | None:
    if prior is not None and prior.weight == 1 and prior.candidates:
        stored, alone = prior.candidates[0], prior.candidates[-1]
        return _Outcome(
            "the statistics of this data alone",
            (stored.entropy, alone.entropy),
            (stored.information, alone.information),
            alone.sure_kept,
            alone.stability,
        )
    if held_out is None or held_out.entropy_before is None or held_out.entropy_after is None:
        return None
    assert held_out.information_before is not None
    assert held_out.information_after is not None
    return _Outcome(
        "the new statistics",
        (held_out.entropy_before, held_out.entropy_after),
        (held_out.information_before, held_out.information_after),
        held_out.confident_agreement,
        None,
    )


def _one_class(held_out: HeldOut) -> Iterator[str]:
    share = held_out.largest_share_before
    single = held_out.decisions == held_out.samples
    if single and share is not None and share >= ONE_CLASS:
        yield (
            f"the data may be of one class: {share:.0%} of the decisions on held-out inputs are "
            "the same, and what makes a class would be normalized away"
        )


def _nothing_said(outcome: _Outcome) -> Iterator[str]:
    if outcome.information[0] < LITTLE_INFORMATION and outcome.entropy[1] >= UNSURE:
        yield (
            f"the outputs say next to nothing of these inputs (information "
            f"{outcome.information[0]:.3f}, of 1 at most) and stay unsure: constant images, noise, "
            "or nothing that the model knows?"
        )


def _spoilt(outcome: _Outcome) -> Iterator[str]:
    if outcome.less_sure:
        before, after = outcome.entropy
        yield (
            f"under {outcome.name} the outputs are less sure: mean entropy {before:.3f} -> "
            f"{after:.3f}, of 1 at most"
        )
    if outcome.says_less:
        before, after = outcome.information
        yield (
            f"under {outcome.name} the outputs say less of the inputs: information {before:.3f} -> "
            f"{after:.3f}, of 1 at most"
        )
    if outcome.sure_kept is not None and outcome.sure_kept < SURE_KEPT:
        yield (
            f"under {outcome.name} {1 - outcome.sure_kept:.0%} of the decisions change that the "
            f"model was sure of (probability {SURE} or more)"
        )
    if outcome.stability is not None and outcome.stability < STABLE:
        yield (
            f"under {outcome.name} either half of the data gives other decisions in "
            f"{1 - outcome.stability:.0%} of all cases"
        )
