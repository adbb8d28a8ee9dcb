"""Find groups of elementary operators that compute a batch norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .constants import resolve

__all__ = ["Lookalike", "find_lookalikes"]


@dataclasses.dataclass(frozen=True, eq=False)
class Lookalike:
    """A group of nodes that compute a batch norm.

    Attributes
    ----------
    nodes : tuple of onnx_ir.Node
        From the first to the last, in the order of the computation.
    statistics : {"stored", "batch"}
        Whether mean and variance are constants or those of the batch.
    """

    nodes: tuple[ir.Node, ...]
    statistics: str

    @property
    def name(self) -> str:
        """The names of the first and the last node."""
        ends = self.nodes[0], self.nodes[-1]
        return " .. ".join(str(n.name or n.outputs[0].name or n.op_type) for n in ends)

    def __str__(self) -> str:
        return f"{', '.join(n.op_type for n in self.nodes)} with {self.statistics} statistics"


def find_lookalikes(model: ir.Model) -> list[Lookalike]:
    """Find the groups, in subgraphs and functions too.

    Two shapes are known: ``(x - mean) / sqrt(var + eps)``, with constant mean and var or with
    ReduceMean over all dimensions but the channels; and ``(x - c) * a + b`` with constants that
    hold a number for each channel, the fused form.
    """
    found: list[Lookalike] = []
    for graph in model.graphs():
        for node in graph:
            group = _normalization(node) or _fused(node)
            if group is not None:
                found.append(group)
    return found


def _normalization(node: ir.Node) -> Lookalike | None:
    """A node that divides ``x - mean`` by ``sqrt(var + eps)``, or multiplies by its inverse."""
    if node.domain != "" or node.op_type not in ("Div", "Mul") or len(node.inputs) != 2:
        return None
    for centered, factor in _orders(node):
        subtract = _producer(centered, "Sub")
        chain = _deviation(factor, inverse=node.op_type == "Mul")
        if subtract is None or chain is None:
            continue
        add = chain[0]
        mean = subtract.inputs[1]
        for variance, eps in ((add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0])):
            number = resolve(eps).array
            if number is None or number.size != 1:
                continue
            if _per_channel(mean) and _per_channel(variance):
                return Lookalike((subtract, *chain, node, *_tail(node)), "stored")
            if _batch_mean(mean) and _batch_mean(variance):
                return Lookalike((subtract, *chain, node, *_tail(node)), "batch")
    return None


def _fused(node: ir.Node) -> Lookalike | None:
    """``(x - c) * a + b`` that ends here."""
    if node.domain != "" or node.op_type != "Add" or len(node.inputs) != 2:
        return None
    for scaled, bias in _orders(node):
        multiply = _producer(scaled, "Mul")
        if multiply is None or not _per_channel(bias):
            continue
        for centered, scale in _orders(multiply):
            subtract = _producer(centered, "Sub")
            if subtract is None or not _per_channel(scale):
                continue
            if _per_channel(subtract.inputs[1]):
                return Lookalike((subtract, multiply, node), "stored")
    return None


def _orders(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    first, second = node.inputs
    yield first, second
    if node.op_type in ("Mul", "Add"):
        yield second, first


def _deviation(value: ir.Value | None, *, inverse: bool) -> tuple[ir.Node, ...] | None:
    """The nodes Add, Sqrt and, for the inverse, Reciprocal; or Add and Pow."""
    if inverse:
        reciprocal = _producer(value, "Reciprocal")
        if reciprocal is None:
            return None
        chain = _deviation(reciprocal.inputs[0], inverse=False)
        return None if chain is None else (*chain, reciprocal)
    root = _producer(value, "Sqrt")
    if root is None:
        return None
    add = _producer(root.inputs[0], "Add")
    return None if add is None or len(add.inputs) != 2 else (add, root)


def _tail(node: ir.Node) -> tuple[ir.Node, ...]:
    """The Mul and the Add that may follow, with the scale and the bias."""
    found: list[ir.Node] = []
    for op_type in ("Mul", "Add"):
        uses = node.outputs[0].uses()
        following = next((u.node for u in uses if u.node.op_type == op_type), None)
        if len(uses) != 1 or following is None or not any(map(_per_channel, following.inputs)):
            break
        found.append(following)
        node = following
    return tuple(found)


def _per_channel(value: ir.Value | None) -> bool:
    """Whether a value is a constant with one number for each of several channels."""
    if value is None:
        return False
    array = resolve(value).array
    if array is None or array.dtype.kind not in "fV" or array.size < 2:
        return False
    shape = np.array(array.shape)
    # Beside (N, C, ...): C and then ones. One number for each of the last dimension is a LayerNorm.
    axis = int(np.argmax(shape > 1))
    return int((shape > 1).sum()) == 1 and (array.ndim - axis > 1 or array.ndim == 2)


def _batch_mean(value: ir.Value | None) -> bool:
    node = _producer(value, "ReduceMean")
    if node is None:
        return False
    attribute = node.attributes.get("axes")
    if attribute is not None:
        axes = [int(axis) for axis in attribute.as_ints()]
    else:
        given = resolve(node.inputs[1]).array if len(node.inputs) > 1 else None
        axes = [] if given is None else [int(axis) for axis in given.ravel()]
    return 0 in axes and 1 not in axes and len(axes) >= 1


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type == op_type else None
