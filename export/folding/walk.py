"""Find what a batch norm can be folded into: upwards from its input, downwards from its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx_ir as ir

from . import convolution, elementwise, layout, matrix, padding, pooling
from .channels import ChannelMap
from .plan import Direction, Plan
from .reasons import Refusal, label, listed
from .site import Site

__all__ = ["Route", "check_plain", "down", "others", "readers", "up"]

_After = Callable[[ir.Node, ChannelMap, Plan], None]
_Before = Callable[[ir.Node, int, ChannelMap, Plan], None]
_Carry = Callable[[ir.Node, ChannelMap, Plan, Direction], ChannelMap]

_TARGETS: dict[str, tuple[_After, _Before]] = {
    "Conv": (convolution.after, convolution.before),
    "ConvTranspose": (convolution.after, convolution.before),
    "Gemm": (matrix.after, matrix.before),
    "MatMul": (matrix.after, matrix.before),
}

_CARRIERS: dict[str, _Carry] = {
    **dict.fromkeys(layout.OPERATORS, layout.carry),
    **dict.fromkeys(pooling.OPERATORS, pooling.carry),
    "Pad": padding.carry,
}


@dataclasses.dataclass(eq=False)
class Route:
    """Where a batch norm is folded into, and what lies between.

    Attributes
    ----------
    targets : list of onnx_ir.Node
        The nodes that take it in.
    between : list of onnx_ir.Node
        The nodes that its scale and shift pass.
    moved : list of str
        The values whose content changes.
    copies : list of onnx_ir.Node
        Upwards: the nodes that others read too, and those above them, from the batch norm up.
    reader : onnx_ir.Node or None
        What reads the first of these.
    """

    targets: list[ir.Node] = dataclasses.field(default_factory=list)
    between: list[ir.Node] = dataclasses.field(default_factory=list)
    moved: list[str] = dataclasses.field(default_factory=list)
    copies: list[ir.Node] = dataclasses.field(default_factory=list)
    reader: ir.Node | None = None

    def __str__(self) -> str:
        through = f", through {listed(self.between)}" if self.between else ""
        return f"{listed(self.targets)}{through}"


def up(site: Site, sites: Mapping[ir.Node, Site], plan: Plan) -> Route:
    """Plan to fold into what makes the input of a batch norm.

    Raises
    ------
    Refusal
        When what makes it cannot take it in, or others read it too.
    """
    over = site.norm.over(site.rank)
    reader, value = site.node, site.x
    route = Route()
    shared = ""
    while True:
        node = _producer(value, site)
        needed = others(value, reader)
        if needed and not shared:
            shared = f"the output of {label(node)} is also {needed}"
            route.reader = reader
        if shared:
            route.copies.append(node)
        route.moved.append(str(value.name))
        index = 0
        if node in sites:
            if shared:
                raise Refusal(shared)
            _into(sites[node], "gives", over, site, plan)
            route.targets.append(node)
            return route
        if node.op_type in _TARGETS:
            _TARGETS[node.op_type][0](node, over, plan)
            if shared and not plan.clone:
                raise Refusal(f"{shared} (clone copies it)")
            if shared:
                plan.notes.append(f"{listed(route.copies)} copied, to run twice")
            route.targets.append(node)
            return route
        if node.op_type in elementwise.OPERATORS:
            index = elementwise.computed_input(node)
            over = elementwise.carry(node, index, over, plan, "up")
            plan.notes.append(f"with {label(node)}")
        elif node.op_type in _CARRIERS:
            over = _CARRIERS[node.op_type](node, over, plan, "up")
            route.between.append(node)
        else:
            raise Refusal(f"its input comes from {label(node)}, which takes no scale and shift in")
        above = node.inputs[index]
        if above is None:
            raise Refusal(f"{label(node)} has no input")
        reader, value = node, above


def down(site: Site, sites: Mapping[ir.Node, Site], plan: Plan) -> Route:
    """Plan to fold into all that reads the output of a batch norm.

    Raises
    ------
    Refusal
        When one of them cannot take it in.
    """
    route = Route()
    waiting = [(site.y, site.norm.over(site.rank))]
    while waiting:
        value, over = waiting.pop()
        if value.is_graph_output():
            raise Refusal(f"{value.name!r} is an output of the graph")
        users = readers(value)
        if not users:
            raise Refusal(f"nothing reads the content of {value.name!r}")
        route.moved.append(str(value.name))
        for node, index in users:
            if node.graph is not site.node.graph:
                raise Refusal(f"{label(node)} reads {value.name!r} inside a subgraph")
            check_plain(node)
            if node in sites and index == 0:
                _into(sites[node], "reads", over, site, plan)
                route.targets.append(node)
            elif node.op_type in _TARGETS:
                _TARGETS[node.op_type][1](node, index, over, plan)
                route.targets.append(node)
            elif node.op_type in elementwise.OPERATORS:
                result = elementwise.carry(node, index, over, plan, "down")
                waiting.append((node.outputs[0], result))
                plan.notes.append(f"with {label(node)}")
            elif node.op_type in _CARRIERS and index == 0:
                result = _CARRIERS[node.op_type](node, over, plan, "down")
                waiting.append((node.outputs[0], result))
                route.between.append(node)
            else:
                raise Refusal(
                    f"its output goes to {label(node)}, which takes no scale and shift in"
                )
    return route


def readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return who reads the content of a value, and as which input; a shape stays as it is."""
    return [use for use in value.uses() if use[0].op_type not in ("Shape", "Size")]


def others(value: ir.Value, reader: ir.Node) -> str:
    """Say who else needs a value beside one reader; empty when no one does."""
    if value.is_graph_output():
        return "an output of the graph"
    users = [node for node, _ in readers(value)]
    if others_than := [node for node in users if node is not reader]:
        return f"read by {listed(others_than)}"
    return f"read twice by {label(reader)}" if len(users) > 1 else ""


def check_plain(node: ir.Node) -> None:
    """Refuse operators of other domains, and attributes that the caller of a function sets."""
    if node.domain not in ("", "ai.onnx"):
        raise Refusal(f"{label(node)} is of the domain {node.domain!r}")
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        raise Refusal(f"the caller of the function sets attributes of {label(node)}")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal(f"more than the first output of {label(node)} is used")


def _producer(value: ir.Value, site: Site) -> ir.Node:
    node = value.producer()
    if node is None:
        kind = "an input" if value.is_graph_input() else "an initializer"
        raise Refusal(f"{value.name!r} before it is {kind} of the graph")
    if node.graph is not site.node.graph:
        raise Refusal(f"{label(node)} before it stands outside its subgraph")
    check_plain(node)
    return node


def _into(target: Site, verb: str, over: ChannelMap, site: Site, plan: Plan) -> None:
    """Plan to fold into another batch norm, which gives or reads what is scaled and shifted."""
    channels = len(target.norm.scale)
    scale, shift = over.along(1, channels, f"{label(target.node)} {verb}")
    norm = (target.norm.then if verb == "gives" else target.norm.behind)(scale, shift)
    target.check(norm)

    def take_in() -> None:
        target.norm = norm
        target.absorbed.append(label(site.node))

    plan.then(target.node, take_in)
