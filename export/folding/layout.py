"""Carry a scale and shift through operators that move values and compute nothing.

Identity, Dropout outside training, Transpose, Reshape, Flatten, Squeeze, Unsqueeze.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ..constants import resolve
from .channels import ChannelMap
from .plan import Direction, Plan, Shape, fixed_ints
from .reasons import Refusal, label

__all__ = ["OPERATORS", "carry"]


def carry(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    """Carry a map of the operator's input to its result ("down"), or the other way ("up").

    Raises
    ------
    Refusal
        When a shape, an axis or the mode that decides it is not known.
    """
    return OPERATORS[node.op_type](node, over, plan, direction)


def _identity(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    return over


def _dropout(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    training = plan.opset < 7 and not node.attributes.get_int("is_test", 0)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = resolve(node.inputs[2]).array
        training = mode is None or bool(mode.any())
    if training:
        raise Refusal(f"{label(node)} may drop values: it is in training mode")
    return over


def _transpose(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    order = fixed_ints(node, "perm", range(over.rank)[::-1])
    if sorted(order) != list(range(over.rank)):
        raise Refusal(f"{label(node)} has perm {order} over {over.rank} dimensions")
    if direction == "up":
        order = [order.index(axis) for axis in range(over.rank)]
    return over.transposed(order)


def _squeeze(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    return _remove_axes(node, over, direction == "down", plan)


def _unsqueeze(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    return _remove_axes(node, over, direction == "up", plan)


def _remove_axes(node: ir.Node, over: ChannelMap, remove: bool, plan: Plan) -> ChannelMap:
    axes = constant_ints(node, "axes", 1)
    rank = over.rank if remove else over.rank + len(axes)
    axes = sorted({axis + rank if axis < 0 else axis for axis in axes})
    if any(not 0 <= axis < rank for axis in axes):
        raise Refusal(f"{label(node)} has axes {axes} over {rank} dimensions")
    shape = list(over.scale.shape)
    if remove:
        if any(shape[axis] != 1 for axis in axes):
            raise Refusal(f"{label(node)} takes away the axis of the channels")
        shape = [size for axis, size in enumerate(shape) if axis not in axes]
    else:
        for axis in axes:
            shape.insert(axis, 1)
    return ChannelMap(over.scale.reshape(shape), over.shift.reshape(shape))


def _reshape(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    shape = plan.shape_of(node.inputs[0])
    if shape is None and direction == "down":
        shape = (None,) * over.rank
    if node.op_type == "Flatten":
        target = _flattened(node, shape)
        zero_copies = False
    else:
        target = constant_ints(node, "shape", 1)
        zero_copies = not node.attributes.get_int("allowzero", 0)
    if shape is None:
        raise Refusal(f"the shape of what {label(node)} reads is not known")
    keep, old, new = _split(node, shape, target, zero_copies)
    if direction == "down":
        return _checked(over, shape, node).reshaped(keep, old, new)
    return _checked(over, (*shape[:keep], *new), node).reshaped(keep, new, old)


def _checked(over: ChannelMap, shape: Sequence[int | str | None], node: ir.Node) -> ChannelMap:
    fits = over.rank == len(shape) and all(
        mine == 1 or not isinstance(dim, int) or mine == dim
        for mine, dim in zip(over.scale.shape, shape, strict=True)
    )
    if not fits:
        raise Refusal(f"{label(node)} is of shape {list(shape)}, not that of the channels")
    return over


def _flattened(node: ir.Node, shape: Shape | None) -> list[int]:
    if shape is None:
        raise Refusal(f"the shape of what {label(node)} reads is not known")
    axis = node.attributes.get_int("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    sizes = [
        math.prod(d for d in part if isinstance(d, int))
        if all(isinstance(d, int) for d in part)
        else -1
        for part in (shape[:axis], shape[axis:])
    ]
    if sizes == [-1, -1]:
        raise Refusal(f"the shape of what {label(node)} reads is known only as {list(shape)}")
    return sizes


def _split(
    node: ir.Node, shape: Shape, target: list[int], zero_copies: bool
) -> tuple[int, list[int], list[int]]:
    """Find how many leading dimensions stay, and what the others are before and after."""
    for keep in range(min(len(shape), len(target)), -1, -1):
        old = [dim for dim in shape[keep:] if isinstance(dim, int)]
        if len(old) < len(shape) - keep or 0 in old:
            continue
        new = _resolved(target[keep:], shape[keep:], zero_copies, math.prod(old))
        if new is not None and _leading_stay(shape[:keep], target[:keep], zero_copies, target):
            return keep, old, new
    raise Refusal(
        f"the dimensions that {label(node)} merges or splits are not all known: "
        f"{list(shape)} to {target}"
    )


def _resolved(target: list[int], shape: Shape, zero_copies: bool, total: int) -> list[int] | None:
    """Fill in the 0 and -1 of a target shape; None when it does not hold `total` values."""
    sizes: list[int] = []
    for axis, size in enumerate(target):
        if size == 0 and zero_copies:
            copied = shape[axis] if axis < len(shape) else None
            if not isinstance(copied, int):
                return None
            size = copied
        sizes.append(size)
    if sizes.count(-1) == 1:
        rest = math.prod(size for size in sizes if size != -1)
        if rest <= 0 or total % rest:
            return None
        sizes[sizes.index(-1)] = total // rest
    return sizes if min(sizes, default=1) > 0 and math.prod(sizes) == total else None


def _leading_stay(shape: Shape, target: list[int], zero_copies: bool, whole: list[int]) -> bool:
    """Whether the leading dimensions are the same before and after.

    One of them may be unknown where nothing else is: the number of values settles it.
    """
    open_ = [
        axis
        for axis, (old, new) in enumerate(zip(shape, target, strict=True))
        if not ((new == 0 and zero_copies) or (isinstance(old, int) and old == new))
    ]
    return not open_ or (len(open_) == 1 and -1 not in whole[len(target) :])


def constant_ints(node: ir.Node, name: str, index: int) -> list[int]:
    """Read what is an attribute in old opsets and an input in new ones.

    Raises
    ------
    Refusal
        When it is neither there nor constant.
    """
    if name in node.attributes:
        return fixed_ints(node, name, ())
    array = resolve(node.inputs[index] if index < len(node.inputs) else None).array
    if array is None:
        raise Refusal(f"the {name} of {label(node)} is no constant")
    return [int(item) for item in array.ravel()]


OPERATORS = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
