"""Take the constant Mul, Add, Sub and Div beside a batch norm into it."""

from __future__ import annotations

import onnx_ir as ir

from . import elementwise
from .plan import Plan
from .reasons import Refusal, label
from .site import Site
from .walk import check_plain, others, readers

__all__ = ["take_in"]


def take_in(site: Site, plan: Plan) -> None:
    """Take in all that can be, before and behind."""
    while _take_behind(site, plan) or _take_before(site, plan):
        pass


def _take_behind(site: Site, plan: Plan) -> bool:
    uses = readers(site.y)
    if len(uses) != 1 or site.y.is_graph_output():
        return False
    node, index = uses[0]
    if not _try(site, node, index, plan, behind=True):
        return False
    y, result = site.y, node.outputs[0]
    result.replace_all_uses_with(y, replace_graph_outputs=True)
    _take_over(y, result)
    _remove(node, plan)
    return True


def _take_before(site: Site, plan: Plan) -> bool:
    node = site.x.producer()
    if node is None or others(site.x, site.node):
        return False
    for index in (0, 1):
        if _try(site, node, index, plan, behind=False):
            site.node.replace_input_with(0, node.inputs[index])
            _remove(node, plan)
            return True
    return False


def _try(site: Site, node: ir.Node, index: int, plan: Plan, *, behind: bool) -> bool:
    wanted = node.op_type in elementwise.OPERATORS and len(node.inputs) == 2
    if not wanted or node.graph is not site.node.graph:
        return False
    try:
        check_plain(node)
        norm = elementwise.absorb(site.norm, node, index, site.rank, plan, behind)
        site.check(norm)
    except Refusal:  # the walk may still find a way past it, or the reason why not
        return False
    site.norm = norm
    site.absorbed.append(label(node))
    return True


def _remove(node: ir.Node, plan: Plan) -> None:
    inputs = list(node.inputs)
    assert node.graph is not None, "a neighbour in the same graph"
    node.graph.remove(node, safe=True)
    plan.weights.discard(inputs)


def _take_over(value: ir.Value, old: ir.Value) -> None:
    """Give a value the name and the stated type of one that it replaces."""
    value.name, old.name = old.name, value.name
    value.shape = old.shape if old.shape is not None else value.shape
    value.type = old.type if old.type is not None else value.type
