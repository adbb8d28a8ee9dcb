"""Copy nodes whose results others need as they are, for one reader of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..surgery import Names

__all__ = ["copy_nodes"]


def copy_nodes(
    nodes: Sequence[ir.Node], reader: ir.Node | None, names: Names
) -> dict[ir.Node, ir.Node]:
    """Copy a chain of nodes, each made from the next one's first output, for one reader.

    Parameters
    ----------
    nodes : sequence of onnx_ir.Node
        From the one that the reader reads, upwards; empty for none.
    reader : onnx_ir.Node or None
        Reads the copy from now on.
    names : Names
        Where the names of the copies come from.

    Returns
    -------
    dict of onnx_ir.Node to onnx_ir.Node
        The copy of each node.
    """
    copies: dict[ir.Node, ir.Node] = {}
    for node in reversed(nodes):
        old, graph = node.outputs[0], node.graph
        copy = ir.Node(
            node.domain,
            node.op_type,
            [_own(value, copies) for value in node.inputs],
            list(node.attributes.values()),
            num_outputs=1,
            name=names.new(f"{node.name or old.name}/copy"),
        )
        new = copy.outputs[0]
        new.name, new.shape, new.type = names.new(f"{old.name}/copy"), old.shape, old.type
        assert graph is not None, "a node of a model is in a graph"
        graph.insert_after(next(reversed(copies.values())) if copies else node, copy)
        copies[node] = copy
    if reader is not None:
        for index, value in enumerate(reader.inputs):
            reader.replace_input_with(index, _own(value, copies))
    return copies


def _own(value: ir.Value | None, copies: dict[ir.Node, ir.Node]) -> ir.Value | None:
    """Return the copy of a value, if the node that makes it is copied."""
    node = None if value is None else value.producer()
    return copies[node].outputs[0] if node in copies else value
