"""Say what every BatchNormalization node of a model is, and what to know about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from .files import ModelLike, load
from .folding.fold import fold
from .nodes import BatchNormNode, find_nodes
from .remarks import REMARKS, Remark, node_remarks
from .results import Report

__all__ = ["InspectReport", "InspectRow", "inspect"]

_MISSING = REMARKS["no-batch-norm"]
NO_NODES = f"{_MISSING.meaning} ({_MISSING.advice})"


@dataclasses.dataclass(frozen=True)
class InspectRow:
    """One node.

    Attributes
    ----------
    name : str
        As ``find_nodes`` names it.
    channels : int or None
        C, when known.
    opset : int
        The opset in force at the node.
    mode : {"eval", "training"}
        Whose statistics it normalizes with: stored, or the batch's.
    input_shape : tuple of int, str or None, or None
        X's, when known.
    dtype : str or None
        X's type by ONNX's name, when known.
    eps, momentum : float
        As the node has them: momentum weighs the old value.
    sources : dict of str
        Where scale, bias, mean and var come from.
    running_var : tuple of two floats, or None
        The smallest and the largest, when known; NaN when one is.
    remarks : tuple of Remark
        What to know.
    producer : str
        What makes X: operator and name, or ``"graph input"``.
    consumers : tuple of str
        What reads Y, the same way; ``"graph output"`` too.
    folds : bool or None
        Whether ``fold`` folds it with its defaults; None when that cannot be said.
    folding : str
        What it would be folded into, or why it stays.
    """

    name: str
    channels: int | None
    opset: int
    mode: str
    input_shape: tuple[int | str | None, ...] | None
    dtype: str | None
    eps: float
    momentum: float
    sources: Mapping[str, str]
    running_var: tuple[float, float] | None
    remarks: tuple[Remark, ...]
    producer: str = ""
    consumers: tuple[str, ...] = ()
    folds: bool | None = None
    folding: str = ""

    @property
    def ok(self) -> bool:
        """Whether no remark names a fault."""
        return not any(remark.fault for remark in self.remarks)

    def cells(self) -> Sequence[str]:
        """One string a column."""
        var = "?" if self.running_var is None else "{:.3g} .. {:.3g}".format(*self.running_var)
        return (
            self.name,
            "?" if self.channels is None else str(self.channels),
            str(self.opset),
            self.mode,
            _sources_in_short(self.sources),
            var,
            self.producer,
            ", ".join(self.consumers) or "-",
            self.folding if self.folds else f"no: {self.folding}",
            ", ".join(remark.code for remark in self.remarks) or "-",
        )


@dataclasses.dataclass(frozen=True)
class InspectReport(Report):
    """A row per node; true when no node has a fault, and when there are no nodes."""

    columns: ClassVar[tuple[str, ...]] = (
        "node",
        "channels",
        "opset",
        "mode",
        "parameters from",
        "running_var",
        "producer",
        "consumers",
        "folds",
        "remarks",
    )

    @property
    def meanings(self) -> dict[str, str]:
        """The text of each remark that occurs, by its code."""
        return {remark.code: remark.text for row in self.rows for remark in row.remarks}

    def __str__(self) -> str:
        if not self.rows:
            return NO_NODES
        notes = [f"{code}: {text}" for code, text in self.meanings.items()]
        return "\n".join([super().__str__(), *([""] if notes else []), *notes])

    def to_dict(self) -> dict[str, Any]:
        """The report for ``json.dumps``; ``message`` says so when there are no nodes."""
        return {**super().to_dict(), "message": None if self.rows else NO_NODES}


def inspect(model: ModelLike) -> InspectReport:
    """List the BatchNormalization nodes of a model, in subgraphs and functions too.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed, and not run.

    Returns
    -------
    InspectReport
        A row per node, in graph order. Without nodes it is empty and its text says so.

    Raises
    ------
    ModelError
        When the model cannot be read.
    """
    opened = load(model)
    nodes = find_nodes(opened)
    foldings = _foldings(opened)
    return InspectReport(
        tuple(
            _row(node, remarks, foldings.get(node.name, (None, "not known")))
            for node, remarks in zip(nodes, node_remarks(nodes, opened.ir_version), strict=True)
        )
    )


def _foldings(model: ir.Model) -> dict[str, tuple[bool | None, str]]:
    """Fold a copy and see what came of each node."""
    try:
        rows = fold(model, prove=False).rows
    except ValueError as error:  # such a file is still worth a look
        return {norm.name: (None, str(error)) for norm in find_nodes(model)}
    return {
        row.name: (True, row.action.removeprefix("folded ")) if row.changed else (False, row.reason)
        for row in rows
    }


def _row(
    node: BatchNormNode, remarks: tuple[Remark, ...], folding: tuple[bool | None, str]
) -> InspectRow:
    var = node.var.array
    known = var is not None and var.size > 0
    return InspectRow(
        name=node.name,
        channels=node.num_features,
        opset=node.opset,
        mode=node.mode,
        input_shape=node.input_shape,
        dtype=None if node.dtype is None else node.dtype.name,
        eps=node.eps,
        momentum=node.momentum,
        sources={name: constant.source for name, constant in node.parameters.items()},
        running_var=(float(var.min()), float(var.max())) if known and var is not None else None,
        remarks=remarks,
        producer=_producer(node.node.inputs[0]),
        consumers=_consumers(node.node.outputs[0]),
        folds=folding[0],
        folding=folding[1],
    )


def _producer(value: ir.Value | None) -> str:
    node = None if value is None else value.producer()
    if node is not None:
        return _label(node)
    return "graph input" if value is not None and value.is_graph_input() else "initializer"


def _consumers(value: ir.Value) -> tuple[str, ...]:
    found = [_label(use.node) for use in value.uses()]
    return tuple(dict.fromkeys([*found, *(["graph output"] if value.is_graph_output() else [])]))


def _label(node: ir.Node) -> str:
    name = node.name or node.outputs[0].name
    return f"{node.op_type} {str(name)!r}"


def _sources_in_short(sources: Mapping[str, str]) -> str:
    by_source: dict[str, list[str]] = {}
    for name, source in sources.items():
        by_source.setdefault(source, []).append(name)
    if len(by_source) == 1:
        return next(iter(by_source))
    return "; ".join(f"{'/'.join(names)}: {source}" for source, names in by_source.items())
