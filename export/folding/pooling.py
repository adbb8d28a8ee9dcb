"""Carry a scale and shift through pooling and reductions, where the two commute."""

from __future__ import annotations

import onnx_ir as ir

from .channels import ChannelMap
from .layout import constant_ints
from .plan import Direction, Plan, fixed_ints
from .reasons import Refusal, label

__all__ = ["OPERATORS", "carry"]

_MAXIMA = ("MaxPool", "GlobalMaxPool", "ReduceMax")
_REDUCTIONS = ("ReduceMean", "ReduceMax")

OPERATORS = frozenset({"AveragePool", "GlobalAveragePool", "Relu", *_MAXIMA, *_REDUCTIONS})


def carry(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    """Carry a map of the operator's input to its result ("down"), or the other way ("up").

    A mean commutes with any scale and shift, as long as no zero padding is counted in it; a
    maximum with scales of 0 or more, as its padding is minus infinity; Relu with scales of 0 or
    more when there is no shift.

    Raises
    ------
    Refusal
        When it does not commute.
    """
    if node.op_type in (*_MAXIMA, "Relu") and (over.scale < 0).any():
        raise Refusal(
            f"{label(node)} stands between, and {(over.scale < 0).sum()} of its scales are negative"
        )
    if node.op_type == "Relu":
        if over.shift.any():
            raise Refusal(f"{label(node)} stands between, which passes no shift")
        return over
    if node.op_type in _REDUCTIONS:
        return _reduce(node, over, plan, direction)
    if any(axis > 1 for axis in over.varies):
        raise Refusal(f"{label(node)} stands between and runs over the axis of its channels")
    if node.op_type == "AveragePool" and _counts_padding(node) and over.shift.any():
        raise Refusal(
            f"its shift is not 0, and {label(node)} counts padding zeros that it does not reach"
        )
    return over


def _counts_padding(node: ir.Node) -> bool:
    if not node.attributes.get_int("count_include_pad", 0):
        return False
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "VALID":
        return False
    # A last window that hangs over the edge may or may not count what lies beyond.
    ceil = bool(node.attributes.get_int("ceil_mode", 0))
    return ceil or mode not in ("", "NOTSET") or any(fixed_ints(node, "pads", [0]))


def _reduce(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    keep = bool(node.attributes.get_int("keepdims", 1))
    given = "axes" in node.attributes or (len(node.inputs) > 1 and node.inputs[1] is not None)
    axes = constant_ints(node, "axes", 1) if given else []
    rank = over.rank
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return over
        shape = plan.shape_of(node.inputs[0])
        if not keep and direction == "up" and shape is None:
            raise Refusal(f"the rank of what {label(node)} reads is not known")
        rank = rank if keep or direction == "down" else len(shape or ())
        axes = list(range(rank))
    elif not keep and direction == "up":
        rank += len(set(axes))
    axes = sorted({axis + rank if axis < 0 else axis for axis in axes})
    sizes = list(over.scale.shape)
    if keep or direction == "down":
        if any(axis in over.varies for axis in axes):
            raise Refusal(f"{label(node)} stands between and runs over the axis of its channels")
        if not keep:
            sizes = [size for axis, size in enumerate(sizes) if axis not in axes]
    else:
        for axis in axes:
            sizes.insert(axis, 1)
    return ChannelMap(over.scale.reshape(sizes), over.shift.reshape(sizes))
