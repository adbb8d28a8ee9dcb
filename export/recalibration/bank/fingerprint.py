"""What tells one model from another, whatever running statistics its batch norms hold."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import onnx_ir as ir

from ...files import ModelError, ModelLike, load
from ...lift import lift, needs_lift
from ...nodes import BatchNormNode, find_nodes
from ...surgery import inline_functions

__all__ = ["Fingerprint", "NodeMark", "fingerprint"]

_STATISTICS = "running statistics"
_SHOWN = 16  # hexadecimal digits of a node's mark: 64 bits tell nodes of one model apart


@dataclasses.dataclass(frozen=True)
class NodeMark:
    """One BatchNormalization node, and all that stands before it.

    Attributes
    ----------
    name : str
        As ``find_nodes`` names it.
    channels : int or None
    digest : str
        Of the operators and weights that its output depends on, statistics left out.
    """

    name: str
    channels: int | None
    digest: str


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a model computes, but for the running statistics of its batch norms.

    Attributes
    ----------
    digest : str
        SHA-256, in hexadecimal, over operators, attributes, weights, inputs and outputs.
    nodes : tuple of NodeMark
        The BatchNormalization nodes, in graph order: they tell where two models part.
    """

    digest: str
    nodes: tuple[NodeMark, ...]

    def difference(self, other: Fingerprint) -> str | None:
        """Say where another model parts from this one; None where it does not.

        Returns
        -------
        str or None
            A phrase about the other model, such as ``"it has no node 'bn3'"``.
        """
        names = {mark.name for mark in other.nodes}
        lost = [mark.name for mark in self.nodes if mark.name not in names]
        if lost:
            more = f" (nor {len(lost) - 1} more of {len(self.nodes)})" if len(lost) > 1 else ""
            return f"it has no node {lost[0]!r}{more}"
        theirs = {mark.name: mark for mark in other.nodes}
        for mark in self.nodes:
            found = theirs[mark.name].channels
            if found != mark.channels:
                return f"its node {mark.name!r} has {found} channels in place of {mark.channels}"
        alike = [mark.name for mark in self.nodes if theirs[mark.name].digest == mark.digest]
        for mark in self.nodes:
            if mark.name not in alike:
                return (
                    f"operators or weights in or before its node {mark.name!r} differ "
                    f"({len(alike)} of {len(self.nodes)} nodes are alike)"
                )
        if self.digest == other.digest:
            return None
        return "its nodes are alike, and what follows them differs"


def fingerprint(model: ModelLike) -> Fingerprint:
    """Fingerprint a model, without the running statistics of its batch norms.

    Two models have the same one when their outputs, by name, are made from the inputs, by name,
    with the same operators, attributes and weights. Left out are the running mean and variance,
    momentum and mode of the batch norms, the names of other values and nodes, the order of nodes,
    what no output needs, and outputs that hold nothing but running statistics. So a re-estimated
    or frozen model keeps its fingerprint.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed. Functions are inlined and opsets below 7 lifted first.

    Raises
    ------
    ModelError
        When the model cannot be read, or is of an old opset and cannot be lifted.
    """
    opened = inline_functions(load(model))
    if needs_lift(opened):
        opened = lift(opened)
    copy = opened.clone()
    try:
        copy.graph.sort()
    except ValueError as error:
        raise ModelError(f"the model's graph cannot be sorted: {error}") from error
    norms = find_nodes(copy)
    reader = _Reader(copy, norms)
    reader.read(copy.graph)
    marks = tuple(
        NodeMark(norm.name, norm.num_features, reader.of(norm.node.outputs[0])[:_SHOWN])
        for norm in norms
    )
    outputs = [(str(value.name), reader.of_output(value)) for value in copy.graph.outputs]
    kept = sorted((name, mark) for name, mark in outputs if mark != _STATISTICS)
    return Fingerprint(_digest(part for pair in kept for part in pair), marks)


class _Reader:
    """The mark of each value: of the operator that makes it and the marks of what that reads."""

    def __init__(self, model: ir.Model, norms: Iterable[BatchNormNode]) -> None:
        self._norms = {id(norm.node): norm for norm in norms}
        self._imports = model.graph.opset_imports
        self._marks: dict[int, str] = {}
        self._statistics: set[int] = set()
        for norm in self._norms.values():
            given = [value for value in norm.node.inputs[3:5] if value is not None]
            self._statistics.update(map(id, [*given, *norm.node.outputs[1:]]))

    def of(self, value: ir.Value | None) -> str:
        if value is None:
            return "none"
        if id(value) not in self._marks:
            self._marks[id(value)] = _stored(value)
        return self._marks[id(value)]

    def of_output(self, value: ir.Value) -> str:
        """The mark of a graph's output; running statistics are the same whatever they are."""
        held: ir.Value | None = value
        while held is not None and id(held) not in self._statistics:
            node = held.producer()
            if node is None or (node.domain, node.op_type) != ("", "Identity"):
                return self.of(value)
            held = node.inputs[0]
        return _STATISTICS

    def read(self, graph: ir.Graph) -> str:
        """Mark what the nodes of a graph make, and return the mark of its outputs."""
        for node in graph:
            mark = self._of_node(node)
            for index, output in enumerate(node.outputs):
                self._marks[id(output)] = _digest([mark, str(index)])
        return _digest(self.of(value) for value in graph.outputs)

    def _of_node(self, node: ir.Node) -> str:
        norm = self._norms.get(id(node))
        if norm is not None:
            parts = ["BatchNormalization", repr(norm.eps), str(norm.spatial)]
            return _digest([*parts, *map(self.of, node.inputs[:3])])
        version = node.version or self._imports.get(node.domain, 0)
        parts = [node.domain, node.op_type, str(version), str(len(node.outputs))]
        for name in sorted(node.attributes):
            parts += [name, self._of_attribute(node.attributes[name])]
        return _digest([*parts, *map(self.of, node.inputs)])

    def _of_attribute(self, attribute: ir.Attr) -> str:
        match attribute.type:
            case ir.AttributeType.GRAPH:
                return self._of_body(attribute.as_graph())
            case ir.AttributeType.GRAPHS:
                return _digest(map(self._of_body, attribute.as_graphs()))
            case ir.AttributeType.TENSOR:
                return _of_tensor(attribute.as_tensor())
            case ir.AttributeType.TENSORS:
                return _digest(map(_of_tensor, attribute.as_tensors()))
        return _digest([str(attribute.type), repr(attribute.value)])

    def _of_body(self, graph: ir.Graph) -> str:
        for index, value in enumerate(graph.inputs):
            self._marks[id(value)] = _digest(["input of a body", str(index)])
        return self.read(graph)


def _stored(value: ir.Value) -> str:
    """The mark of what no node makes: a weight by its content, an input by its name."""
    if value.const_value is not None:
        return _of_tensor(value.const_value)
    return _digest(["input", str(value.name), str(value.dtype)])


def _of_tensor(tensor: ir.TensorProtocol) -> str:
    head = f"{tensor.dtype} {list(tensor.shape)}"
    if tensor.dtype == ir.DataType.STRING:
        return _digest([head, *map(repr, tensor.numpy().ravel())])
    try:
        content = tensor.tobytes()
    except Exception as error:  # a broken tensor raises whatever its storage raises
        raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error
    return _digest([head, hashlib.sha256(content).hexdigest()])


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()
