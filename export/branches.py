"""Force the branches of If nodes, so that a proof sees those that its inputs do not reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .constants import resolve
from .surgery import Names

__all__ = ["Branch", "changed_branches", "force"]

_BRANCHES = {"then_branch": True, "else_branch": False}


@dataclasses.dataclass(frozen=True)
class Branch:
    """A branch of an If node, with those around it.

    Attributes
    ----------
    steps : tuple of (str, bool)
        For each If on the way, from the outermost: its first output, and whether its
        ``then_branch`` is taken.
    """

    steps: tuple[tuple[str, bool], ...]

    def __str__(self) -> str:
        """Name it for people."""
        return ", ".join(
            f"{'then' if taken else 'else'}_branch of the If that makes {output!r}"
            for output, taken in self.steps
        )


def changed_branches(before: ir.Model, after: ir.Model) -> list[Branch]:
    """List the branches that are not the same in both models, by their Ifs' outputs.

    Of branches within each other only the innermost are listed, which forces those around them.
    A branch is not the same either where a weight that it reads from outside is not. Ifs inside
    Loop and Scan are left out: a loop may never end when its body does not do what it is to.
    """
    theirs = dict(_branches(after.graph, ()))
    changed = [
        branch
        for branch, graph in _branches(before.graph, ())
        if branch in theirs and not _same(graph, theirs[branch])
    ]
    around = {branch.steps[:n] for branch in changed for n in range(1, len(branch.steps))}
    return [branch for branch in changed if branch.steps not in around]


def force(model: ir.Model, branch: Branch) -> ir.Model:
    """Make a copy of a model in which the Ifs of a branch always take it."""
    copy = model.clone()
    names, steps = Names(copy), dict(branch.steps)
    for node in list(ir.traversal.RecursiveGraphIterator(copy.graph)):
        if node.op_type != "If" or str(node.outputs[0].name) not in steps:
            continue
        tensor = ir.tensor(np.array(steps[str(node.outputs[0].name)]))
        tensor.name = names.new("forced")
        condition = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(()),
            const_value=tensor,
        )
        copy.graph.register_initializer(condition)
        node.replace_input_with(0, condition)
    copy.ir_version = max(copy.ir_version, 4)  # before, initializers had to be graph inputs too
    return copy


def _branches(
    graph: ir.Graph, steps: tuple[tuple[str, bool], ...]
) -> Iterator[tuple[Branch, ir.Graph]]:
    for node in graph:
        if node.op_type != "If" or node.domain != "":
            continue
        for name, taken in _BRANCHES.items():
            further = (*steps, (str(node.outputs[0].name), taken))
            if name in node.attributes:
                branch = node.attributes[name].as_graph()
                yield Branch(further), branch
                yield from _branches(branch, further)


def _same(one: ir.Graph, two: ir.Graph) -> bool:
    if ir.to_proto(one).SerializeToString() != ir.to_proto(two).SerializeToString():
        return False
    first, second = (_read_from_outside(graph) for graph in (one, two))
    return first.keys() == second.keys() and all(
        np.array_equal(array, second[name]) for name, array in first.items()
    )


def _read_from_outside(graph: ir.Graph) -> dict[str, np.ndarray]:
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    values = [v for node in nodes for v in node.inputs if v is not None and v.graph is not graph]
    found = {str(value.name): resolve(value).array for value in values}
    return {name: array for name, array in found.items() if array is not None}
