"""Say what every BatchNormalization node of a model is, and what to know about it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from . import opsets
from .files import ModelLike
from .nodes import BatchNormNode, find_nodes
from .results import Report

__all__ = ["InspectReport", "InspectRow", "Remark", "inspect"]

NO_NODES = (
    "no BatchNormalization node: probably folded by the exporter (torch.onnx.export keeps them "
    "with optimize=False, or with dynamo=False and training=torch.onnx.TrainingMode.PRESERVE)"
)


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something to know about a node.

    Attributes
    ----------
    code : str
        A stable name for programs, such as ``"training-mode"``.
    text : str
        What it means, in a line.
    fault : bool
        Whether the node cannot compute what it should.
    """

    code: str
    text: str
    fault: bool = False


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
    nodes = find_nodes(model)
    sharing = collections.Counter(
        id(constant.value) for node in nodes for constant in (node.mean, node.var) if constant.known
    )
    return InspectReport(tuple(_row(node, sharing) for node in nodes))


def _row(node: BatchNormNode, sharing: Mapping[int, int]) -> InspectRow:
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
        remarks=tuple(_remarks(node, sharing)),
    )


def _remarks(node: BatchNormNode, sharing: Mapping[int, int]) -> list[Remark]:
    found: list[Remark] = []
    constants = node.parameters
    training = node.mode == "training"
    if training:
        found.append(
            Remark(
                "training-mode",
                "normalizes with the batch's statistics; the CUDA provider refuses it from opset "
                "14 on, and outputs depend on how the data is batched",
            )
        )
    if training and _hidden_state(node):
        found.append(
            Remark(
                "hidden-state",
                "running statistics that are not outputs of the graph: onnxruntime may write them "
                "over the initializers, and over equal ones of other nodes",
            )
        )
    if not node.spatial:
        found.append(
            Remark("spatial-0", "statistics per activation (spatial=0), which few runtimes support")
        )
    if node.opset < opsets.OLDEST_BUILT:
        found.append(
            Remark(
                "old-opset",
                f"opset below {opsets.OLDEST_BUILT}: onnxruntime has no kernel for this version",
            )
        )
    if node.by_reference:
        found.append(
            Remark("set-by-caller", "the caller of the function sets some attributes of this node")
        )
    if any(not constant.known for constant in constants.values()):
        found.append(
            Remark("not-constant", "some parameters are not fixed by the model, so not judged here")
        )
    if any(constant.overridable for constant in constants.values()):
        found.append(
            Remark(
                "overridable",
                "parameters are graph inputs too: the caller may feed others, "
                "and runtimes cannot fold them",
            )
        )
    if any(sharing[id(constant.value)] > 1 for constant in (node.mean, node.var)):
        found.append(
            Remark("shared-statistics", "mean or var is also the mean or var of another node")
        )
    found += _judge_values(node)
    return found


def _judge_values(node: BatchNormNode) -> list[Remark]:
    arrays = {name: c.array for name, c in node.parameters.items() if c.array is not None}
    found: list[Remark] = []
    if len({array.shape for array in arrays.values()}) > 1:
        found.append(
            Remark("shape-mismatch", "parameters of different shapes, expected [C]", fault=True)
        )
    numbers = {name: array.astype(np.float64) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in numbers.values()):
        found.append(Remark("not-finite", "NaN or infinity among the parameters", fault=True))
    # In training mode the stored statistics do not enter the output.
    if node.mode == "training" or "var" not in numbers:
        return found
    if (numbers["var"] + node.eps <= 0).any():
        found.append(
            Remark("non-positive-variance", "var + epsilon is 0 or less: NaN or inf", fault=True)
        )
    if "mean" in numbers and not numbers["mean"].any() and (numbers["var"] == 1).all():
        found.append(
            Remark("untouched-statistics", "mean 0 and var 1 throughout: as before any training")
        )
    return found


def _hidden_state(node: BatchNormNode) -> bool:
    """Whether running statistics go nowhere that keeps onnxruntime from the initializers."""
    return node.version.since >= 9 and any(
        not output.is_graph_output() for output in node.node.outputs[1:3]
    )


def _sources_in_short(sources: Mapping[str, str]) -> str:
    by_source: dict[str, list[str]] = {}
    for name, source in sources.items():
        by_source.setdefault(source, []).append(name)
    if len(by_source) == 1:
        return next(iter(by_source))
    return "; ".join(f"{'/'.join(names)}: {source}" for source, names in by_source.items())
