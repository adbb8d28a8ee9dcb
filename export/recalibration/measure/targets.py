"""Which nodes are re-estimated: by name or pattern, parameters that are shared, and refusals."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...files import ModelError, ModelLike
from ...nodes import BatchNormNode, find_nodes
from ...prepare import prepare

__all__ = ["Target", "Targets", "choose_targets"]


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One pair of statistics to re-estimate.

    Attributes
    ----------
    name : str
        The first of `members`.
    members : tuple of str
        The nodes that normalize with these statistics, as ``find_nodes`` names them: more than one
        where a layer is used several times.
    channels : int
        C.
    mean, var : numpy.ndarray of float64, shape (C,)
        The stored statistics; the variance is the population's.
    eps : float
        Added to the variance, under the root.
    dtype : numpy.dtype
        What the model stores them in.
    """

    name: str
    members: tuple[str, ...]
    channels: int
    mean: np.ndarray
    var: np.ndarray
    eps: float
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """What is re-estimated in a model.

    Attributes
    ----------
    model : onnx_ir.Model
        The model, in which functions are inlined and whose opset onnxruntime runs: all names are
        those that ``find_nodes`` gives in it. Never changed.
    targets : tuple of Target
        In graph order.
    refused : tuple of (str, str)
        Nodes that were asked for and cannot be re-estimated, each with the reason.
    notes : tuple of str
        What was done to the model that was given.
    """

    model: ir.Model = dataclasses.field(repr=False)
    targets: tuple[Target, ...]
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def choose_targets(model: ModelLike, nodes: Collection[str] | None = None) -> Targets:
    """Choose the nodes to re-estimate.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed. Functions that hold batch norms are inlined, and an opset
        below 7 is lifted to 7.
    nodes : collection of str, optional
        Names, as ``find_nodes`` gives them, or patterns with ``*``, ``?`` and ``[...]``; all nodes
        when None. A name is tried before a pattern.

    Returns
    -------
    Targets
        Nodes whose mean and variance are the same values of the model are one target, unless those
        are 0 and 1 as before any training and weight or bias differ: then an optimizer merged what
        merely looked alike. Nodes of a group that were not asked for keep what they have.

    Raises
    ------
    ModelError
        When the model cannot be read, has no BatchNormalization node, none that matches one of
        `nodes`, or none that can be re-estimated.
    """
    if isinstance(nodes, str):
        nodes = [nodes]
    prepared = prepare(model, None)
    found = find_nodes(prepared.model)
    wanted = _matching([norm.name for norm in found], nodes)
    refused: list[tuple[str, str]] = []
    groups: dict[tuple[object, ...], list[BatchNormNode]] = {}
    for norm in found:
        if norm.name not in wanted:
            continue
        reason = _why_not(norm)
        if reason:
            refused.append((norm.name, reason))
        else:
            groups.setdefault(_identity(norm), []).append(norm)
    if not groups:
        name, reason = refused[0]
        raise ModelError(
            f"no BatchNormalization node can be re-estimated; {name!r}, for one: {reason}"
        )
    targets = tuple(_target(group) for group in groups.values())
    return Targets(prepared.model, targets, tuple(refused), prepared.notes)


def _matching(names: list[str], nodes: Collection[str] | None) -> set[str]:
    if nodes is None:
        return set(names)
    wanted: set[str] = set()
    for entry in nodes:
        matches = [entry] if entry in names else fnmatch.filter(names, entry)
        if not matches:
            some = ", ".join(repr(name) for name in names[:5])
            more = ", ..." if len(names) > 5 else ""
            raise ModelError(
                f"no BatchNormalization node is named or matches {entry!r}: there are {some}{more}"
            )
        wanted.update(matches)
    if not wanted:
        raise ModelError("expected at least one name or pattern in nodes, got none")
    return wanted


def _why_not(norm: BatchNormNode) -> str:
    """Say why a node cannot be re-estimated, in words; empty when it can."""
    if norm.path:
        return f"it is inside {norm.path[0]}: what a branch or loop body sees is not measured"
    if len(norm.node.inputs) != 5 or any(value is None for value in norm.node.inputs):
        return "it lacks inputs"
    if not norm.spatial and norm.rank != 2:
        return "it has statistics per activation (spatial=0)"
    for name in ("mean", "var"):
        constant = norm.parameters[name]
        if constant.array is None:
            return f"its {name} is not fixed by the model: {constant.source}"
        if constant.array.ndim != 1 or constant.array.shape != (norm.num_features,):
            return (
                f"its {name} has shape {list(constant.array.shape)}, expected [{norm.num_features}]"
            )
    if norm.num_features == 0:
        return "it has no channels"
    if norm.dtype is None:
        return "the type of its input is not known"
    return ""


def _identity(norm: BatchNormNode) -> tuple[object, ...]:
    """What two uses of one layer have in common, and two layers have not."""
    names = ["mean", "var", *(["scale", "bias"] if norm.untouched else [])]
    return tuple(id(norm.parameters[name].value) for name in names)


def _target(group: list[BatchNormNode]) -> Target:
    first = group[0]
    mean, var = first.mean.array, first.var.array
    assert mean is not None
    assert var is not None
    return Target(
        name=first.name,
        members=tuple(norm.name for norm in group),
        channels=len(mean),
        mean=mean.astype(np.float64),
        var=var.astype(np.float64),
        eps=first.eps,
        dtype=mean.dtype,
    )
