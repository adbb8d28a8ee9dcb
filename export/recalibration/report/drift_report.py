"""What a drift report holds: a row per layer, and verdicts in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from ...results import Report, to_plain
from .first_layer import InputChange
from .verdicts import input_verdicts

__all__ = ["DriftMethod", "DriftReport", "DriftRow"]

DriftMethod = Literal["stored", "batch", "sequential"]

DRIFTS = 0.1
"""Symmetric KL of a layer's middle channel from which it is said to drift, in nats: what a shift
of 0.32 deviations alone gives, or a variance ratio of 1.56 alone."""

CHANCE = 4.0
"""How many times what chance alone gives the drift of a layer must be."""


@dataclasses.dataclass(frozen=True, eq=False)
class DriftRow:
    """One layer: stored and observed statistics of its input, and how far they are apart.

    Attributes
    ----------
    name : str
        As ``find_nodes`` names it; the first node where several share their statistics.
    members : tuple of str
        All nodes that share the statistics.
    position : int
        Its place among the batch norms of the model, from 1.
    channels : int
        C.
    samples, observations : int
        Samples that were seen, and values of each channel in them.
    eps : float
        Added to every variance below before it is used, as the node does: a variance of 0 gives
        no infinities.
    stored_mean, stored_var : numpy.ndarray, shape (C,), float64
    observed_mean, observed_var : numpy.ndarray, shape (C,), float64
        Population variance (ddof=0).
    mean_error, var_error : numpy.ndarray, shape (C,), float64
        Standard errors of what was observed, over samples; NaN with fewer than 2.
    shift : numpy.ndarray, shape (C,), float64
        ``(observed_mean - stored_mean) / sqrt(stored_var + eps)``: in stored deviations.
    var_ratio : numpy.ndarray, shape (C,), float64
        ``(observed_var + eps) / (stored_var + eps)``.
    kl : numpy.ndarray, shape (C,), float64
        Symmetric Kullback-Leibler divergence of the two Gaussians, in nats.
    typical_shift, typical_ratio, typical_kl : float
        Of the middle channel: the medians of ``abs(shift)``, ``var_ratio`` and ``kl``.
    largest_shift : float
        The shift that is largest in absolute value, with its sign.
    largest_channel : int
        The channel that has it.
    chance : float
        The symmetric KL that sampling alone is expected to give to the middle channel; NaN with
        fewer than 2 samples.
    dead : tuple of int
        Channels that are constant on this data, and were not in training.
    awake : tuple of int
        Channels that are not constant on this data, and were in training.
    untouched : bool
        Whether the stored statistics are 0 and 1, as before any training.
    training : bool
        Whether the node is in training mode: it normalizes with each batch, not with these.
    rank : int
        1 for the layer that drifts most.

    Notes
    -----
    Source: with r the variance ratio and d the shift, the two divergences of univariate Gaussians
    add up to ``(r + 1 / r - 2 + d**2 * (1 + 1 / r)) / 2`` (Jeffreys, 1946; Kullback and Leibler,
    1951).
    """

    name: str
    members: tuple[str, ...]
    position: int
    channels: int
    samples: int
    observations: int
    eps: float
    stored_mean: np.ndarray
    stored_var: np.ndarray
    observed_mean: np.ndarray
    observed_var: np.ndarray
    mean_error: np.ndarray
    var_error: np.ndarray
    shift: np.ndarray
    var_ratio: np.ndarray
    kl: np.ndarray
    typical_shift: float
    typical_ratio: float
    typical_kl: float
    largest_shift: float
    largest_channel: int
    chance: float
    dead: tuple[int, ...]
    awake: tuple[int, ...]
    untouched: bool
    training: bool = False
    rank: int = 0

    @property
    def drifts(self) -> bool:
        """Whether the middle channel drifts by 0.1 nats or more, and by more than chance gives."""
        floor = 0.0 if np.isnan(self.chance) else CHANCE * self.chance
        return not self.typical_kl < max(DRIFTS, floor)

    @property
    def ok(self) -> bool:
        """Whether the layer does not drift."""
        return not self.drifts

    def cells(self) -> Sequence[str]:
        """One string a column."""
        return (
            self.name,
            str(self.channels),
            f"{self.typical_shift:.2f}",
            f"{self.largest_shift:+.2f}",
            f"{self.typical_ratio:.3g}",
            f"{self.typical_kl:.3g}",
            str(self.rank),
        )


@dataclasses.dataclass(frozen=True)
class DriftReport(Report):
    """A row per layer, in the order of the graph; true when none drifts.

    Attributes
    ----------
    verdicts : tuple of str
        What the numbers say, in words; the weightiest first.
    method : {"stored", "batch", "sequential"}
        What the earlier layers normalized with while a layer was measured: their stored
        statistics, each batch's, or the re-estimated ones.
    refused : tuple of pairs of str
        Nodes that were not measured, each with the reason.
    notes : tuple of str
        How the data were read, where there is something to know of it.
    inputs : InputChange or None
        What change of the model's input would explain the drift of the first layer, where that
        was looked for and found.
    """

    verdicts: tuple[str, ...] = ()
    method: DriftMethod = "stored"
    refused: tuple[tuple[str, str], ...] = ()
    inputs: InputChange | None = None
    notes: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]] = (
        "layer",
        "channels",
        "shift",
        "largest",
        "var ratio",
        "KL",
        "rank",
    )

    @property
    def ranking(self) -> tuple[str, ...]:
        """The names of the layers, the one that drifts most first."""
        return tuple(row.name for row in sorted(self.rows, key=lambda row: row.rank))

    @property
    def of_inputs(self) -> tuple[str, ...]:
        """Of the verdicts those on the model's inputs: scale, brightness, contrast, noise."""
        return tuple(
            text for text in input_verdicts(self.rows, self.inputs) if text in self.verdicts
        )

    @property
    def samples(self) -> int:
        """Samples that were seen."""
        return max((row.samples for row in self.rows), default=0)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), "", *self.notes, *self.verdicts])

    def to_dict(self) -> dict[str, Any]:
        """The report for ``json.dumps``, with the ranking and what each row comes to."""
        plain = super().to_dict()
        for row, given in zip(self.rows, plain["rows"], strict=True):
            given["drifts"] = bool(row.drifts)
        return {**plain, "samples": self.samples, "ranking": to_plain(self.ranking)}
