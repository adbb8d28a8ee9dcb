"""What drift numbers say, in plain words, with the numbers; and nothing that they do not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .drift import DriftRow
    from .first_layer import InputChange

__all__ = ["input_verdicts", "verdicts"]

SAME = 1e-3
"""Largest shift in deviations, and largest relative change of a variance, of statistics that are
called equal: what storing them as float16 may cost."""

BY_CHANCE = 0.1
"""Equal statistics are nearer than chance allows: by this many standard errors at most."""

UNSURE = 0.25
"""Standard error of the middle channel's mean, in its own deviations, above which it is said."""

EXPLAINED = 0.98
"""Share of the first layer's drift that a change of the inputs must explain to be all that is said:
in networks that were measured, noise and blur look like a change of contrast to 96 %."""

ALIKE = 0.02
"""Symmetric KL of the first layer's middle channel up to which its inputs are as in training."""

NOTABLE = 0.1
"""Change of the inputs' mean, in deviations that fit, and part by which their contrast changes,
from which they are put in words."""

WRONG_SCALE = 20.0
"""A scale of the inputs that is this far off is a matter of preprocessing rather than of light."""

_NAMED = 3


def verdicts(
    rows: Sequence[DriftRow],
    *,
    inputs: InputChange | None = None,
    refused: Sequence[tuple[str, str]] = (),
) -> tuple[str, ...]:
    """Say in words what the rows show.

    Parameters
    ----------
    rows : sequence of DriftRow
        In graph order, with their ranks.
    inputs : InputChange, optional
        What would explain the drift of the first layer.
    refused : sequence of (str, str)
        Nodes that were not measured, with the reason.

    Returns
    -------
    tuple of str
        First what makes the model or the measurement doubtful, then what drifts and where, then
        single channels. Never empty when there are rows.
    """
    trained = [row for row in rows if not row.untouched]
    same = _same(trained)
    said = [*_training(rows), *_untouched(rows)]
    if same:
        said.append(same)
    else:
        said += [*_unsure(trained), *input_verdicts(rows, inputs), *_layers(rows, trained, inputs)]
    said += [*_dead(trained), *_awake(trained), *_refused(refused)]
    return tuple(said)


def _training(rows: Sequence[DriftRow]) -> list[str]:
    training = [row for row in rows if row.training]
    if not training:
        return []
    return [
        f"outputs match batch statistics: {_part(training, rows)} in training mode, so the "
        "exporter ran in training mode, and what the model says of a sample depends on the others "
        "in its batch; here the stored statistics stood in for the batch's (cbn freeze settles it)"
    ]


def _untouched(rows: Sequence[DriftRow]) -> list[str]:
    untouched = [row for row in rows if row.untouched]
    if not untouched:
        return []
    return [
        f"the model's stored statistics are untouched (mean 0, variance 1) in "
        f"{_some(untouched, rows)}: never trained, or never kept, so their drift says nothing of "
        "this data"
    ]


def _same(rows: Sequence[DriftRow]) -> str:
    """Say so when the stored statistics are those of the data: no chance makes them so alike."""
    if not rows:
        return ""
    largest = 0.0
    for row in rows:
        shift = np.abs(row.shift)
        ratio = np.abs(row.var_ratio - 1)
        unbiased = np.abs(row.var_ratio * (row.observations / max(row.observations - 1, 1)) - 1)
        largest = max(largest, shift.max(), min(ratio.max(), unbiased.max()))
        error = row.mean_error / np.sqrt(row.stored_var + row.eps)
        usual = np.sqrt(np.mean(error**2))
        if not largest <= SAME or np.sqrt(np.mean(shift**2)) > BY_CHANCE * usual:
            return ""
    return (
        f"the stored statistics are those of this very data (no layer differs by more than "
        f"{largest:.1g} deviations): the model was estimated on it, or the exporter ran on it in "
        "training mode"
    )


def _unsure(rows: Sequence[DriftRow]) -> list[str]:
    if not rows:
        return []
    samples = rows[0].samples
    errors = [
        float(np.median(row.mean_error / np.sqrt(row.observed_var + row.eps))) for row in rows
    ]
    if np.isnan(errors).any():
        return ["one sample alone: how far these numbers are chance cannot be told"]
    worst = int(np.argmax(errors))
    if errors[worst] <= UNSURE:
        return []
    return [
        f"{samples} samples are few: in {_named(rows[worst])} the middle channel's mean is known "
        f"to {errors[worst]:.2g} deviations only, and smaller shifts may be chance"
    ]


def input_verdicts(rows: Sequence[DriftRow], change: InputChange | None) -> list[str]:
    """Speak of the model's input only where runs of the model have tied it to the first layer."""
    first = next((row for row in rows if change is not None and row.name == change.layer), None)
    if change is None or first is None or not first.drifts:
        return []
    if change.deviation == 0:
        return [f"the inputs are all one number, {change.mean:.3g}: they show no layer anything"]
    ratio = f"with a variance ratio of {first.typical_ratio:.2g}"
    shifts = f"layer 1 shifts by {_number(first.typical_shift)} deviations, {ratio}"
    if change.explained < EXPLAINED:
        low, high = np.percentile(first.var_ratio, [10, 90])
        left = 100 * (1 - change.explained)
        return [
            f"the inputs differ from those of training by more than brightness and contrast: "
            f"{shifts} ({low:.2g} to {high:.2g} between the 10th and the 90th percentile), and the "
            f"change of scale and offset that fits best leaves {left:.0f} % of that unexplained, "
            "as noise, blur or other content would"
        ]
    means = f"their mean is {change.mean:.3g} where {change.fitting_mean:.3g} would fit"
    spreads = f"their deviation {change.deviation:.3g} where {change.fitting_deviation:.3g} would"
    share = f"that explains {100 * change.explained:.1f} % of its drift"
    if not 1 / WRONG_SCALE < abs(change.scale) < WRONG_SCALE:
        factor = abs(1 / change.scale)
        return [
            f"the inputs are {factor:.3g} times those of training: {shifts}; {means}, {spreads}; "
            f"{share}; a step of the preprocessing may be missing, or done twice"
        ]
    said = _compared(change)
    if not said:
        return []
    return [f"the inputs are {said} in training: {shifts}; {means}, {spreads}; {share}"]


def _compared(change: InputChange) -> str:
    """Say in which way the inputs differ from those of training."""
    if change.scale < 0:
        return "a negative of what they were"
    said = []
    moved = change.mean - change.fitting_mean
    if abs(moved) > NOTABLE * change.fitting_deviation:
        words = ("brighter", "darker") if change.image else ("higher", "lower")
        said.append(words[moved < 0])
    if not 1 - NOTABLE < change.scale < 1 / (1 - NOTABLE):
        what = "contrast" if change.image else "spread"
        said.append(f"of {'lower' if change.scale > 1 else 'higher'} {what}")
    return f"{' and '.join(said)} than" if said else ""


def _layers(
    rows: Sequence[DriftRow], trained: Sequence[DriftRow], inputs: InputChange | None
) -> list[str]:
    if not trained:
        return []
    drifting = [row for row in trained if row.drifts]
    worst = min(trained, key=lambda row: row.rank)
    if not drifting:
        largest = max(row.typical_shift for row in trained)
        ratios = [row.typical_ratio for row in trained]
        return [
            f"no drift: the middle channel of no layer shifts by more than {_number(largest)} "
            f"deviations, and its variance ratio is {min(ratios):.2f} to {max(ratios):.2f}"
        ]
    said = (
        f"{len(drifting)} of {len(trained)} layers drift, most of all {_named(worst)}: its middle "
        f"channel shifts by {_number(worst.typical_shift)} deviations, with a variance ratio of "
        f"{worst.typical_ratio:.2g}"
    )
    first = drifting[0]
    if first.position > 1:
        said += f"; drift begins at layer {first.position}"
        if inputs is not None and rows[0].name == inputs.layer and rows[0].typical_kl <= ALIKE:
            said += (
                ", while layer 1 sees nearly what it saw in training: brightness, contrast and "
                "scale of the inputs are not what changed"
            )
    return [said]


def _dead(rows: Sequence[DriftRow]) -> list[str]:
    return _channels(rows, "dead", "dead: constant on this data, and not in training")


def _awake(rows: Sequence[DriftRow]) -> list[str]:
    return _channels(rows, "awake", "awake: constant in training, and not on this data")


def _channels(rows: Sequence[DriftRow], which: str, words: str) -> list[str]:
    found = [(row, getattr(row, which)) for row in rows if getattr(row, which)]
    if not found:
        return []
    row, channels = max(found, key=lambda pair: len(pair[1]))
    total = sum(len(channels) for _, channels in found)
    if total == 1:
        return [f"a channel is {words} (channel {channels[0]} of {_named(row)})"]
    places = f"{_named(row)}" if len(found) == 1 else f"{len(found)} layers, most in {_named(row)}"
    listed = ", ".join(map(str, channels[:_NAMED])) + (", ..." if len(channels) > _NAMED else "")
    return [f"{total} channels are {words} (in {places}: {listed})"]


def _refused(refused: Sequence[tuple[str, str]]) -> list[str]:
    if not refused:
        return []
    name, reason = refused[0]
    nodes = "1 node was" if len(refused) == 1 else f"{len(refused)} nodes were"
    return [f"{nodes} not measured: {name!r}: {reason}"]


def _number(value: float) -> str:
    if not value < 1000:
        return f"{value:.3g}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _named(row: DriftRow) -> str:
    return repr(row.name)


def _part(some: Sequence[DriftRow], rows: Sequence[DriftRow]) -> str:
    return f"{len(some)} of {len(rows)} layers {'is' if len(some) == 1 else 'are'}"


def _some(some: Sequence[DriftRow], rows: Sequence[DriftRow]) -> str:
    if len(some) == len(rows):
        return "every layer"
    named = ", ".join(_named(row) for row in some[:_NAMED])
    return f"{len(some)} of {len(rows)} layers ({named}{', ...' if len(some) > _NAMED else ''})"
