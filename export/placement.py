"""Where the nodes of a model run: which CUDA refuses, and which fell back to the CPU unasked."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import onnx_ir as ir

from .nodes import find_nodes

__all__ = ["CPU", "CUDA", "Placed", "fallen_back", "refused_by_cuda", "shape_nodes"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# Their outputs are sizes, which every provider gives in the memory of the CPU.
_SIZES = frozenset({"Shape", "Size"})

# onnxruntime's limit for initializers that a computation of shapes may read.
_SMALL_INITIALIZER = 100

_STANDARD = ("", "ai.onnx")


class Placed(NamedTuple):
    """A node and the provider that onnxruntime gave it to."""

    provider: str
    name: str
    op_type: str

    def __str__(self) -> str:
        return f"{self.op_type} {self.name!r}"


def refused_by_cuda(model: ir.Model) -> list[str]:
    """Name the BatchNormalization nodes that the CUDA provider refuses as it loads them.

    Those with training_mode=1, of opset 14 on (onnxruntime#16867). Before opset 14 training nodes
    load.
    """
    return [
        node.name
        for node in find_nodes(model)
        if node.mode == "training" and node.version.mode_from == "training_mode"
    ]


def fallen_back(model: ir.Model, placed: Iterable[Placed]) -> list[Placed]:
    """Return the nodes that run on the CPU and do not belong there.

    onnxruntime keeps on the CPU, on purpose, what only computes with sizes: `shape_nodes`. Nodes
    are told by name and operator. Where some share both, such as nodes without a name, as many may
    be on the CPU as compute shapes. A node that the model does not have was made by onnxruntime as
    it optimized: it may be on the CPU when the model computes shapes with its operator.
    """
    here = [node for node in placed if node.provider == CPU]
    if not here:
        return []
    of_shapes = {id(node) for node in shape_nodes(model)}
    known: set[tuple[str, str]] = set()
    allowed: collections.Counter[tuple[str, str]] = collections.Counter()
    operators = set(_SIZES)
    for node in _nodes(model):
        key = (node.name or "", node.op_type)
        known.add(key)
        if id(node) in of_shapes:
            allowed[key] += 1
            operators.add(node.op_type)
    found = []
    for item in here:
        key = (item.name, item.op_type)
        if key not in known:
            if item.op_type not in operators:
                found.append(item)
        elif allowed[key]:
            allowed[key] -= 1
        else:
            found.append(item)
    return found


def shape_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that compute with sizes and nothing else.

    Shape and Size; and what reads the result of one of these nodes, and beside such results only
    constants, initializers of at most 100 numbers, and inputs of the graph. The rule is that of
    onnxruntime's ``GetCpuPreferredNodes``, by which such nodes are kept on the CPU.
    """
    sizes: set[int] = set()
    found = []
    for node in _nodes(model):
        if node.op_type in _SIZES and node.domain in _STANDARD:
            chosen = True
        else:
            given = [value for value in node.inputs if value is not None]
            chosen = any(id(value) in sizes for value in given) and all(
                id(value) in sizes or _is_small(value) for value in given
            )
        if chosen:
            found.append(node)
            sizes.update(id(value) for value in node.outputs)
    return found


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of subgraphs and functions too, each after what it reads."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield from _sorted(graph)


def _sorted(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph in topological order, a subgraph's after what it reads from outside."""
    done: set[ir.Node] = set()
    for start in graph:
        stack = [start]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            makers = (value.producer() for value in node.inputs if value is not None)
            waiting = [m for m in makers if m is not None and m not in done and m.graph is graph]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            done.add(node)
            yield node
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type is ir.AttributeType.GRAPH:
                    yield from _sorted(attribute.as_graph())
                elif attribute.type is ir.AttributeType.GRAPHS:
                    for inner in attribute.as_graphs():
                        yield from _sorted(inner)


def _is_small(value: ir.Value) -> bool:
    if value.is_initializer():
        tensor = value.const_value
        return tensor is not None and tensor.size <= _SMALL_INITIALIZER
    if value.is_graph_input():
        return True
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"
