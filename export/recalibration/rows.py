"""What became of the statistics of each node: one row a node, whoever changed them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..nodes import find_nodes
from ..rewrite import KEPT
from .measure.targets import Target, Targets

__all__ = ["COLUMNS", "Moments", "StatisticsRow", "rows_of"]

Moments = tuple[np.ndarray, np.ndarray]
"""Mean and population variance, float64 of shape (C,)."""

COLUMNS = ("node", "action", "channels", "largest shift", "var ratio", "reason")

_NOW_EVAL = "was in training mode (normalized each batch by itself), now uses {} statistics"


@dataclasses.dataclass(frozen=True)
class StatisticsRow:
    """What became of the running statistics of one node.

    Attributes
    ----------
    name : str
        As ``find_nodes`` names it.
    action : str
        What was done, or ``"kept"``.
    channels : int or None
    shift : float or None
        The largest change of a mean, in stored deviations ``sqrt(var + eps)``, with its sign; None
        where nothing changed.
    var_ratio : float or None
        The median over the channels of ``(new var + eps) / (old var + eps)``.
    reason : str
        Why it stays, or what to know of what was done.
    ok : bool
        False where the node was to change and could not.
    """

    name: str
    action: str
    channels: int | None
    shift: float | None = None
    var_ratio: float | None = None
    reason: str = ""
    ok: bool = True

    @property
    def changed(self) -> bool:
        """Whether the node has other statistics than before."""
        return self.action != KEPT

    def cells(self) -> Sequence[str]:
        """One string a column."""
        return (
            self.name,
            self.action,
            "?" if self.channels is None else str(self.channels),
            "-" if self.shift is None else f"{self.shift:+.2f}",
            "-" if self.var_ratio is None else f"{self.var_ratio:.3g}",
            self.reason or "-",
        )


def rows_of(
    targets: Targets,
    statistics: Mapping[str, Moments],
    action: str | Mapping[str, str],
    reasons: Mapping[str, str],
    *,
    failed: bool = False,
) -> tuple[StatisticsRow, ...]:
    """Describe a change of statistics, a row for each node of the model in graph order.

    Parameters
    ----------
    targets : Targets
        The nodes that were changed, with what they had before.
    statistics : mapping of str to (mean, var)
        What they have now, by target.
    action : str or mapping of str to str
        What was done to them, to all or by target; ``"kept"`` where they stay.
    reasons : mapping of str to str
        Why the other nodes stay; ``"not asked for"`` where it says nothing.
    failed : bool, default: False
        Whether a node with a reason was to change, so that its row is not ok.
    """
    owners = {member: target for target in targets.targets for member in target.members}
    rows = []
    for norm in find_nodes(targets.model):
        target = owners.get(norm.name)
        if target is None:
            reason = reasons.get(norm.name, "not asked for")
            ok = not (failed and norm.name in reasons)
            rows.append(StatisticsRow(norm.name, KEPT, norm.num_features, reason=reason, ok=ok))
            continue
        done = action if isinstance(action, str) else action[target.name]
        known = [] if norm.name == target.name else [f"shares its statistics with {target.name!r}"]
        if norm.mode == "training":
            known.append(_NOW_EVAL.format("the stored" if done == KEPT else "these"))
        reason = "; ".join(known)
        if done == KEPT:
            rows.append(StatisticsRow(norm.name, KEPT, target.channels, reason=reason))
            continue
        shift, ratio = _change(target, *statistics[target.name])
        rows.append(StatisticsRow(norm.name, done, target.channels, shift, ratio, reason))
    return tuple(rows)


def _change(target: Target, mean: np.ndarray, var: np.ndarray) -> tuple[float, float]:
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = (mean - target.mean) / np.sqrt(target.var + target.eps)
        ratio = (var + target.eps) / (target.var + target.eps)
    return float(shift[np.argmax(np.abs(shift))]), float(np.median(ratio))
