"""What folding one node would change: collected first, carried out only when all of it can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from .reasons import Refusal, label, listed
from .rounding import round_once
from .weights import Weight, Weights

__all__ = ["Direction", "Plan", "Shape", "fixed_ints", "label_name"]

Shape = tuple[int | str | None, ...]

Direction = Literal["down", "up"]

_Edit = Callable[[ir.Node], None]


class Plan:
    """Edits to nodes, each checked when it is planned.

    Parameters
    ----------
    weights : Weights
        The constants of the model.
    shape_of : callable
        Gives the shape of a value, or None.
    opset : int
        The opset in force.
    dtype : numpy.dtype
        The type of the tensors between the nodes.
    clone : bool
        Whether weights that other nodes read too may be copied.
    """

    def __init__(
        self,
        weights: Weights,
        shape_of: Callable[[ir.Value | None], Shape | None],
        *,
        opset: int,
        dtype: np.dtype,
        clone: bool,
    ) -> None:
        self.weights = weights
        self.shape_of = shape_of
        self.opset = opset
        self.dtype = dtype
        self.clone = clone
        self.notes: list[str] = []
        self.moved: list[str] = []  # values whose content changes beside those on the way
        self._edits: list[tuple[ir.Node, _Edit]] = []

    def read(self, node: ir.Node, index: int, role: str) -> Weight:
        """Read a constant input of a node."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return self.weights.read(value, f"the {role} of {label(node)}")

    def own(self, node: ir.Node, index: int, role: str) -> None:
        """Refuse an input that other nodes read too, unless it may be copied."""
        others = self.weights.sharers(node, index)
        if others and not self.clone:
            raise Refusal(
                f"the {role} of {label(node)} is shared with {listed(others)} "
                "(clone gives each its own)"
            )
        if others:
            self.notes.append(f"the {role} of {label(node)} copied")

    def put(
        self,
        node: ir.Node,
        index: int,
        exact: Callable[[], np.ndarray],
        dtype: np.dtype,
        role: str,
    ) -> None:
        """Plan a new constant as an input of a node."""
        stored = round_once(exact(), dtype, f"the {role} of {label(node)}")
        self._edits.append((node, lambda n: self.weights.put(n, index, stored, exact, role)))

    def set(self, node: ir.Node, name: str, value: float) -> None:
        """Plan a new value of an attribute."""
        attribute = (
            ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, value)
        )
        self._edits.append((node, lambda n: n.attributes.__setitem__(name, attribute)))

    def add_after(self, node: ir.Node, exact: np.ndarray, dtype: np.dtype) -> None:
        """Plan an Add of a constant behind a node; its result takes over name and readers."""
        stored = round_once(exact, dtype, f"the Add behind {label(node)}")
        broadcast = {"broadcast": 1} if self.opset < 7 else {}
        self._edits.append((node, lambda n: self._add(n, stored, exact, broadcast)))

    def bypass(self, node: ir.Node, index: int) -> None:
        """Plan to leave out a node: what it makes becomes one of its inputs."""
        self._edits.append((node, lambda n: self._leave_out(n, index)))

    def then(self, node: ir.Node, edit: Callable[[], None]) -> None:
        """Plan anything else."""
        self._edits.append((node, lambda _: edit()))

    def carry_out(self, copies: Mapping[ir.Node, ir.Node] | None = None) -> None:
        """Make the edits, on the copy of a node where there is one."""
        for node, edit in self._edits:
            edit((copies or {}).get(node, node))

    def _leave_out(self, node: ir.Node, index: int) -> None:
        inputs, graph, value = list(node.inputs), node.graph, node.inputs[index]
        assert graph is not None, "a node of a model is in a graph"
        assert value is not None, "what was planned for is there"
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)
        self.weights.discard([v for i, v in enumerate(inputs) if i != index])

    def _add(
        self, node: ir.Node, stored: np.ndarray, exact: np.ndarray, attributes: dict[str, int]
    ) -> None:
        names, graph, old = self.weights.names, node.graph, node.outputs[0]
        assert graph is not None, "a node of a model is in a graph"
        add = ir.node("Add", [None, None], attributes, name=names.new(f"{label_name(node)}/Add"))
        new = add.outputs[0]
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, names.new(f"{old.name}/without_bias")
        add.replace_input_with(0, old)
        graph.insert_after(node, add)
        self.weights.put(add, 1, stored, lambda: exact, "bias")


def label_name(node: ir.Node) -> str:
    """Return the name of a node, or of its first output."""
    return str(node.name or node.outputs[0].name)


def fixed_ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """Read a list attribute."""
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(i) for i in attribute.as_ints()]
