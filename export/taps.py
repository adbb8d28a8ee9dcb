"""A copy of a model that gives away values from inside its main graph as further outputs."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .files import ModelError

__all__ = ["expose"]


def expose(
    model: ir.Model, names: Iterable[str], *, shapes_only: bool = False
) -> tuple[ir.Model, dict[str, str]]:
    """Make values of the main graph outputs of a copy of the model.

    The new outputs carry a type only where the graph states one: onnxruntime infers the rest, so
    no shape inference is needed. Values inside subgraphs and functions have no name outside them.

    Parameters
    ----------
    model : onnx_ir.Model
        The model; it is not changed. The copy shares its weights.
    names : iterable of str
        Values to expose: results of nodes, inputs or initializers of the main graph.
    shapes_only : bool, default: False
        Give the shape of each value, int64 of shape (rank,), in place of its content.

    Returns
    -------
    model : onnx_ir.Model
        The copy; the outputs of the original come first, in their order.
    outputs : dict of str
        For each name the output that holds it.

    Raises
    ------
    ModelError
        When the main graph has no value of such a name.
    """
    copy = model.clone()
    graph = copy.graph
    values = _values(graph)
    nested = ir.traversal.RecursiveGraphIterator(graph)
    taken = set(values) | {value.name for node in nested for value in node.outputs}
    outputs = {value.name: value for value in graph.outputs}
    result: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name not in values:
            raise ModelError(f"the main graph of the model has no value {name!r}")
        value = values[name]
        if shapes_only:
            value = _append(graph, "Shape", value, taken)
        elif name not in outputs and value.producer() is None:
            # An input or initializer may not be an output as it stands.
            value = _append(graph, "Identity", value, taken)
        if value.name not in outputs:
            graph.outputs.append(value)
            outputs[value.name] = value
        result[name] = str(value.name)
    return copy, result


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    values |= {value.name: value for node in graph for value in node.outputs}
    return {name: value for name, value in values.items() if name}


def _append(graph: ir.Graph, op_type: str, value: ir.Value, taken: set[str | None]) -> ir.Value:
    node = ir.node(op_type, [value])
    base = f"{value.name}_{op_type.lower()}"
    name = base
    number = 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    node.name = node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]
