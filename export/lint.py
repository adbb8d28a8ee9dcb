"""Say what may go wrong with the batch norms of a model, and what to do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from .files import ModelLike, load
from .lookalikes import find_lookalikes
from .nodes import find_nodes
from .remarks import Remark, make_remark, node_remarks
from .results import Report, counted

__all__ = ["LintReport", "LintRow", "lint"]

_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclasses.dataclass(frozen=True)
class LintRow:
    """One remark.

    Attributes
    ----------
    name : str
        The node, as ``find_nodes`` names it; the ends of a group of nodes; or ``"(model)"``.
    remark : Remark
    """

    name: str
    remark: Remark

    @property
    def ok(self) -> bool:
        """Whether this is no error."""
        return not self.remark.fault

    def cells(self) -> Sequence[str]:
        """One string a column."""
        return (self.name, self.remark.severity, self.remark.code, self.remark.detail or "-")


@dataclasses.dataclass(frozen=True)
class LintReport(Report):
    """A row per remark, errors first; true when none is an error."""

    columns: ClassVar[tuple[str, ...]] = ("where", "severity", "code", "detail")

    def count(self, severity: str) -> int:
        """How many rows are of a severity."""
        return sum(row.remark.severity == severity for row in self.rows)

    @property
    def meanings(self) -> dict[str, tuple[str, str]]:
        """What each code that occurs means and what to do, in the order of the rows."""
        return {row.remark.code: (row.remark.text, row.remark.advice) for row in self.rows}

    @property
    def summary(self) -> str:
        """One line: how much of what there is."""
        if not self.rows:
            return "nothing to remark"
        counts = [(self.count(severity), severity) for severity in _ORDER]
        return ", ".join(counted(n, word) for n, word in counts if n)

    def __str__(self) -> str:
        if not self.rows:
            return self.summary
        notes = [f"{code}: {text}. {advice}." for code, (text, advice) in self.meanings.items()]
        return "\n".join([super().__str__(), "", *notes, "", self.summary])

    def to_dict(self) -> dict[str, Any]:
        """The report for ``json.dumps``."""
        return {**super().to_dict(), "summary": self.summary}


def lint(model: ModelLike) -> LintReport:
    """Find what may go wrong with the batch norms of a model; nothing is run.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.

    Returns
    -------
    LintReport
        A row per remark on a node, on a group of nodes that computes a batch norm, and on a model
        without any. The codes are those of ``cbn.export.remarks.REMARKS``.

    Raises
    ------
    ModelError
        When the model cannot be read.
    """
    opened = load(model)
    nodes = find_nodes(opened)
    rows = [
        LintRow(node.name, remark)
        for node, remarks in zip(nodes, node_remarks(nodes, opened.ir_version), strict=True)
        for remark in remarks
    ]
    groups = find_lookalikes(opened)
    rows += [LintRow(group.name, make_remark("decomposed", str(group))) for group in groups]
    if not nodes and not groups:
        rows.append(LintRow("(model)", make_remark("no-batch-norm")))
    return LintReport(tuple(sorted(rows, key=lambda row: _ORDER[row.remark.severity])))
