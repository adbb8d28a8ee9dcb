"""Small operations on the graph of a model: new nodes in place of old ones, names not yet taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from .files import ModelError

__all__ = [
    "Names",
    "Patch",
    "inline_functions",
    "is_used",
    "opset_of",
    "store_constant",
    "value_names",
]


class Names:
    """Names of values and nodes that a model does not have yet."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self.bodies = [function.graph for function in model.functions.values()]
        for graph in model.graphs():
            self._taken.update(str(value.name) for value in graph.inputs)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(str(node.name))
                self._taken.update(str(value.name) for value in node.outputs)

    def new(self, base: str) -> str:
        """Return `base`, or `base` with a number after it, and take it."""
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


class Patch:
    """Nodes that take the place of one node, in whatever graph it is.

    Build them with ``op`` and ``constant``, then ``replace``. Values and nodes are named after
    the node that they replace.
    """

    def __init__(self, node: ir.Node, names: Names) -> None:
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise ModelError(f"node {node.name!r} is in no graph")
        self._graph = graph
        self._node = node
        self._names = names
        self._base = str(node.name or node.outputs[0].name or node.op_type)
        self._nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int = 1,
    ) -> ir.Value:
        """Append a node and return its first output."""
        node = ir.node(op_type, list(inputs), dict(attributes or {}), num_outputs=outputs)
        node.name = self._names.new(f"{self._base}/{op_type}")
        for i, value in enumerate(node.outputs):
            value.name = self._names.new(node.name + (f"_{i}" if i else ""))
        self._nodes.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray | ir.TensorProtocol, name: str) -> ir.Value:
        """Store an array as an initializer of the node's graph."""
        tensor = ir.tensor(array)
        unique = self._names.new(f"{self._base}/{name}")
        tensor.name = unique
        if any(self._graph is body for body in self._names.bodies):  # has no initializers
            return self.op("Constant", [], {"value": tensor})
        return store_constant(self._graph, tensor, unique)

    def take(self, nodes: Iterable[ir.Node], *, keep_names: bool = False) -> None:
        """Append nodes made elsewhere; their names follow the node's, unless they keep their own.

        Values without a name get one.
        """
        for node in nodes:
            if not (keep_names and node.name):
                node.name = self._names.new(f"{self._base}/{node.name or node.op_type}")
            for i, value in enumerate(node.outputs):
                if not value.name:
                    value.name = self._names.new(node.name + (f"_{i}" if i else ""))
            self._nodes.append(node)

    def replace(self, new: Sequence[ir.Value | None]) -> None:
        """Put the nodes in place of the old one, `new` in place of its outputs (None: unused).

        The new values take over the names, so that graph outputs keep theirs.
        """
        old = [value for value, other in zip(self._node.outputs, new, strict=False) if other]
        kept = [other for other in new if other is not None]
        made = {id(value) for node in self._nodes for value in node.outputs}
        # A value that is older than this patch keeps its own name: give it another.
        for i, value in enumerate(kept):
            if id(value) not in made:
                kept[i] = self.op("Identity", [value])
                made.add(id(kept[i]))
        ir.convenience.replace_nodes_and_values(
            self._graph, self._node, [self._node], self._nodes, old, kept
        )


def store_constant(graph: ir.Graph, array: np.ndarray | ir.TensorProtocol, name: str) -> ir.Value:
    """Store an array as an initializer of a graph, under a name that is not taken."""
    tensor = ir.tensor(array)
    tensor.name = name
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def is_used(value: ir.Value) -> bool:
    """Whether anything needs a value; an optional output that is left out has no name."""
    return bool(value.name) and (value.is_graph_output() or bool(value.uses()))


def value_names(graph: ir.Graph) -> set[str]:
    """Return the names of a graph's own values."""
    values = [*graph.inputs, *graph.initializers.values()]
    return {str(v.name) for v in (*values, *(o for node in graph for o in node.outputs)) if v.name}


def opset_of(model: ir.Model) -> int:
    """Return the opset of the default domain.

    Raises
    ------
    ModelError
        When the model imports none.
    """
    opset = model.opset_imports.get("") or model.opset_imports.get("ai.onnx")
    if not opset:
        raise ModelError("the model imports no ONNX opset")
    return int(opset)


def inline_functions(model: ir.Model) -> ir.Model:
    """Replace calls of model-local functions by their bodies, in a copy.

    Raises
    ------
    ModelError
        When a function is broken or calls itself.
    """
    if not model.functions:
        return model
    try:
        return InlinePass()(model.clone()).model
    except Exception as error:  # a broken function raises whatever breaks first
        raise ModelError(f"the model's functions cannot be inlined: {error}") from error
