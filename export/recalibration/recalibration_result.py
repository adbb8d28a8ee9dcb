"""What re-estimation gives: the new model, and all there is to decide by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import onnx_ir as ir

from ..results import Report, counted, to_plain
from .bank.bank import StatisticsBank
from .judge.blend import PriorChoice
from .judge.evidence import EvidenceReport
from .judge.heldout import HeldOut
from .measure.observed import Observed
from .report.drift import DriftReport
from .rows import COLUMNS, StatisticsRow

__all__ = ["RecalibrationResult"]


@dataclasses.dataclass(frozen=True)
class RecalibrationResult(Report):
    """A re-estimated model with a row per node, and the evidence for and against it.

    True unless the metric got worse on the held-out inputs, or a node that was asked for by name
    could not be re-estimated. Warnings do not make it false, nor does being `doubtful`: read them.

    Attributes
    ----------
    rows : tuple of StatisticsRow
        One for each BatchNormalization node.
    model : onnx_ir.Model
        The new model. It shares the weights with the one before, which is as it was.
    method : {"batch", "sequential"}
        How the statistics were measured.
    statistics : mapping of str to Observed
        What was seen, by target; before any blending.
    prior : PriorChoice
        How much the stored statistics count, and why.
    evidence : EvidenceReport
        How far the data carries, node by node.
    drift : DriftReport
        How far the data is from the stored statistics.
    held_out : HeldOut or None
        What both models say of inputs that took no part; None when there were none.
    notes : tuple of str
        What else was done, or is to be known: what the drift says of the inputs among it, where
        some were held out.
    """

    rows: tuple[StatisticsRow, ...]
    model: ir.Model = dataclasses.field(repr=False)
    method: str
    statistics: Mapping[str, Observed] = dataclasses.field(repr=False)
    prior: PriorChoice
    evidence: EvidenceReport
    drift: DriftReport
    held_out: HeldOut | None = None
    notes: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    @property
    def ok(self) -> bool:
        """Whether the metric did not get worse, and all nodes that were named changed."""
        return super().ok and not self.worse

    @property
    def worse(self) -> bool:
        """Whether the metric got worse on the held-out inputs."""
        return self.held_out is not None and self.held_out.worse

    @property
    def changed(self) -> int:
        """How many nodes have other statistics than before."""
        return sum(row.changed for row in self.rows)

    @property
    def samples(self) -> int:
        """Samples that the statistics were measured on."""
        return max(observed.samples for observed in self.statistics.values())

    @property
    def doubtful(self) -> bool:
        """Whether statistics changed on too few samples, or were compared on too few."""
        few = self.evidence.few_samples or self.evidence.few_held_out
        return bool(self.changed) and few

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against using the model, each with the reason."""
        return self.evidence.warnings

    @property
    def summary(self) -> str:
        """One line: what was done, and what the held-out inputs say of it."""
        text = (
            f"{self.changed} of {counted(len(self.rows), 'node')} re-estimated on "
            f"{counted(self.samples, 'sample')}, {self.prior.weight:.0%} stored"
        )
        if self.evidence.few_samples:
            text += "; too few samples to trust"
        seen = self.held_out
        if seen is None:
            return f"{text}; nothing was held out to compare on"
        if seen.metric_before is not None and seen.metric_after is not None:
            word = "worse" if seen.worse else "not worse"
            text += f"; {seen.metric} {seen.metric_before:.4g} -> {seen.metric_after:.4g}: {word}"
        if seen.agreement is not None:
            text += (
                f"; {seen.agreement:.1%} of the decisions stay ({seen.output!r}, read as "
                f"{seen.kind} of {seen.num_classes} classes)"
            )
        else:
            text += f"; the outputs change by {seen.change:.3g} of their deviations"
        text += f", on {counted(seen.samples, 'held-out sample')}"
        return f"{text}, too few to tell" if self.evidence.few_held_out else text

    def bank(self, domain: str = "") -> StatisticsBank:
        """The new statistics, to keep apart from the model.

        With the counts behind them where they are those of the data alone. Where stored ones have
        a part nobody counted what those come from: there are no counts, and the domain says the
        shares, as ``StatisticsBank.blend`` has it.
        """
        weight = self.prior.weight
        if weight == 0:
            return StatisticsBank.of_model(self.model, domain, self.statistics)
        shares = f"{weight:.3g} stored + {1 - weight:.3g} {domain or 'unnamed'}"
        return StatisticsBank.of_model(self.model, shares)

    def __str__(self) -> str:
        warnings = [f"warning: {warning}" for warning in self.warnings]
        tables = [super().__str__(), str(self.evidence)]
        parts = [*tables, *self.notes, self.prior.reason, *warnings, self.summary]
        return "\n\n".join(filter(None, parts))

    def to_dict(self) -> dict[str, Any]:
        """The result for ``json.dumps``, without the model."""
        return {
            "ok": self.ok,
            "doubtful": self.doubtful,
            "changed": self.changed,
            "samples": self.samples,
            "method": self.method,
            "summary": self.summary,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "rows": to_plain(self.rows),
            "prior": to_plain(self.prior),
            "held_out": to_plain(self.held_out),
            "evidence": self.evidence.to_dict(),
            "drift": self.drift.to_dict(),
        }
