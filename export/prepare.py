"""What every rewrite does first: open the model, find its nodes, make it one that runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import onnx_ir as ir

from . import opsets
from .files import ModelError, ModelLike, load
from .lift import lift, needs_lift
from .nodes import BatchNormNode, find_nodes
from .surgery import inline_functions

__all__ = ["Prepared", "choose", "prepare"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model to rewrite.

    Attributes
    ----------
    model : onnx_ir.Model
        The model that was given, or a copy that onnxruntime runs.
    wanted : frozenset of str
        The nodes to change, as ``find_nodes`` names them.
    lifted : bool
        Whether it was of an opset that no onnxruntime runs, and is of opset 7 now.
    notes : tuple of str
        What was done to it.
    """

    model: ir.Model
    wanted: frozenset[str]
    lifted: bool = False
    notes: tuple[str, ...] = ()


def prepare(
    model: ModelLike,
    nodes: Collection[str] | None,
    *,
    inline: bool = True,
    runnable: bool = True,
) -> Prepared:
    """Open a model for a rewrite; its nodes keep their names.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    nodes : collection of str or None
        The nodes that the rewrite is asked for; all when None.
    inline : bool, default: True
        Whether functions that hold batch norms are inlined, where all nodes are asked for. A body
        says neither types nor shapes, and may mean something else for each of its calls.
    runnable : bool, default: True
        Whether a model of an opset that no onnxruntime runs is lifted to one that it does.

    Raises
    ------
    ModelError
        When the model cannot be read, has no BatchNormalization, none of a name in `nodes`, or
        cannot be lifted.
    """
    opened = load(model)
    notes = []
    if inline and nodes is None and _in_functions(opened):
        opened = inline_functions(opened)
        notes.append("functions that hold batch norms were inlined")
    wanted = frozenset(norm.name for norm in choose(opened, nodes))
    lifted = runnable and needs_lift(opened)
    if lifted:
        opened = lift(opened)
        notes.append(
            f"lifted to opset {opsets.OLDEST_BUILT} by onnx's version converter: the proof starts "
            "from there, since no onnxruntime runs the model as it was"
        )
    return Prepared(opened, wanted, lifted, tuple(notes))


def choose(model: ir.Model, nodes: Collection[str] | None) -> list[BatchNormNode]:
    """Find the nodes that a rewrite is asked for.

    Raises
    ------
    ModelError
        When the model has none, or none of a name in `nodes`.
    """
    found = find_nodes(model)
    if not found:
        raise ModelError("the model has no BatchNormalization node: nothing to do")
    if nodes is None:
        return found
    unknown = sorted(set(nodes) - {norm.name for norm in found})
    if unknown:
        some = ", ".join(repr(norm.name) for norm in found[:5])
        more = ", ..." if len(found) > 5 else ""
        raise ModelError(f"no BatchNormalization node is named {unknown[0]!r}: it has {some}{more}")
    return [norm for norm in found if norm.name in nodes]


def _in_functions(model: ir.Model) -> bool:
    return any(norm.path and norm.path[0].startswith("function ") for norm in find_nodes(model))
