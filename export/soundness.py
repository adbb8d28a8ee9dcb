"""Whether a graph is one: every value made once, before it is read, and nothing in a circle."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

__all__ = ["check_definitions", "check_graphs", "every_graph", "first_sparse"]


def every_graph(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph: the main one, those of functions, and the subgraphs of each."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield graph
        yield from graph.subgraphs()


def check_graphs(model: ir.Model) -> None:
    """Check every graph of a model.

    Raises
    ------
    ValueError
        When a node reads what nothing makes, or waits for its own result, or a function calls
        itself.
    """
    _check_names(model)
    _check_cycles(model)
    _check_recursion(model)


def check_definitions(graph: onnx.GraphProto) -> None:
    """Refuse a value that is made twice: onnx-ir would keep one of the two in silence."""
    sources: dict[str, str] = {}
    stored = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    for tensor in stored:
        _define(sources, tensor.name, "an initializer")
    names = {tensor.name for tensor in stored}
    for value in graph.input:  # of an initializer, the input is only its declaration
        if value.name not in names:
            _define(sources, value.name, "a graph input")
    for node in graph.node:
        for output in node.output:
            if output:
                _define(sources, output, f"{node.op_type} {node.name!r}")
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    check_definitions(subgraph)


def first_sparse(graph: onnx.GraphProto | onnx.FunctionProto) -> str | None:
    """Name a sparse tensor of a graph or its subgraphs, which onnx-ir does not read."""
    for sparse in getattr(graph, "sparse_initializer", ()):  # a function has none
        return f"the initializer {sparse.values.name!r}"
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                return f"the attribute {attribute.name} of {node.op_type} {node.name!r}"
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node and (found := first_sparse(subgraph)):
                    return found
    return None


def _define(sources: dict[str, str], value: str, source: str) -> None:
    if value in sources:
        raise ValueError(f"{value!r} is made twice, by {sources[value]} and {source}")
    sources[value] = source


def _check_cycles(model: ir.Model) -> None:
    """Refuse nodes that wait for each other: whatever follows a graph would go round forever."""
    for graph in every_graph(model):
        waits = {node: _makers(node, graph) for node in graph}
        readers: dict[ir.Node, list[ir.Node]] = {node: [] for node in waits}
        for node, makers in waits.items():
            for maker in makers:
                readers[maker].append(node)
        ready = [node for node, makers in waits.items() if not makers]
        done = 0
        while ready:
            node = ready.pop()
            done += 1
            for reader in readers[node]:
                waits[reader].discard(node)
                if not waits[reader]:
                    ready.append(reader)
        if done < len(waits):
            stuck = next(node for node, makers in waits.items() if makers)
            raise ValueError(
                f"{stuck.op_type} {stuck.name or ''!r} waits for its own result, in a cycle"
            )


def _check_recursion(model: ir.Model) -> None:
    """Refuse functions that call themselves, which ONNX forbids: they cannot be inlined."""
    calls = {
        key: {
            node.op_identifier()
            for graph in (function.graph, *function.graph.subgraphs())
            for node in graph
        }
        & set(model.functions)
        for key, function in model.functions.items()
    }
    while calls:
        leaves = {key for key, called in calls.items() if not called}
        if not leaves:
            stuck = next(iter(calls))
            raise ValueError(f"function {stuck[1]!r} calls itself")
        calls = {key: called - leaves for key, called in calls.items() if key not in leaves}


def _makers(node: ir.Node, graph: ir.Graph) -> set[ir.Node]:
    """The nodes of a graph whose results a node reads, itself or in its subgraphs."""
    makers = {value.producer() for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        subgraphs: tuple[ir.Graph, ...] = ()
        if attribute.type is ir.AttributeType.GRAPH:
            subgraphs = (attribute.as_graph(),)
        elif attribute.type is ir.AttributeType.GRAPHS:
            subgraphs = tuple(attribute.as_graphs())
        for subgraph in subgraphs:
            for inner in ir.traversal.RecursiveGraphIterator(subgraph):
                makers |= {value.producer() for value in inner.inputs if value is not None}
            makers |= {value.producer() for value in subgraph.outputs}
    return {maker for maker in makers if maker is not None and maker.graph is graph}


def _check_names(model: ir.Model) -> None:
    """Refuse nodes that read what nothing makes: onnx-ir invents a value for it."""
    for graph in every_graph(model):
        for node in graph:
            if not all(type(text) is str for text in (node.op_type, node.domain)):
                raise ValueError(f"{node.op_type!r} is no operator")
            for value in node.inputs:
                if value is None or value.producer() is not None:
                    continue
                if not (value.is_graph_input() or value.is_initializer()):
                    raise ValueError(
                        f"{node.op_type} {node.name or ''!r} reads "
                        f"{value.name!r}, which nothing makes"
                    )
        for value in graph.outputs:
            made = value.producer() is not None or value.is_graph_input() or value.is_initializer()
            if not made:
                raise ValueError(f"nothing makes the output {value.name!r}")
