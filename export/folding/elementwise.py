"""Take constant Mul, Add, Sub and Div, and other batch norms, into a batch norm beside them.

Source: ONNX Mul, Add, Sub, Div: opset 1 and 6 align by the attributes broadcast and axis, opset 7
and later as NumPy does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..constants import resolve
from .channels import ChannelMap, Norm
from .plan import Direction, Plan
from .reasons import Refusal, label

__all__ = ["OPERATORS", "absorb", "carry", "computed_input"]

OPERATORS = frozenset({"Mul", "Add", "Sub", "Div"})


def absorb(norm: Norm, node: ir.Node, index: int, rank: int, plan: Plan, behind: bool) -> Norm:
    """Return the batch norm that does what it did and what the node beside it does.

    Parameters
    ----------
    norm : Norm
    node : onnx_ir.Node
        A Mul, Add, Sub or Div.
    index : int
        Which of its inputs is computed; the other has to be constant.
    rank : int
        Of the tensor between the two.
    plan : Plan
    behind : bool
        Whether the node stands behind the batch norm, or before it.

    Raises
    ------
    Refusal
        When the other input is no constant, or is not one value a channel.
    """
    stored = _constant(node, index, plan)
    constant = stored.reshape(_aligned(node, stored, index, rank, plan))
    channels = len(norm.scale)
    if not behind:
        _check_growth(node, index, stored, constant, plan)
    if any(
        size not in ((1, channels) if axis == 1 else (1,))
        for axis, size in enumerate(constant.shape)
    ):
        raise Refusal(
            f"the constant of {label(node)}, of shape {list(constant.shape)}, is not one value a "
            "channel"
        )
    scale, shift = _affine(node, np.broadcast_to(constant.reshape(-1), (channels,)), index)
    return norm.then(scale, shift) if behind else norm.behind(scale, shift)


def carry(
    node: ir.Node, index: int, over: ChannelMap, plan: Plan, direction: Direction
) -> ChannelMap:
    """Carry a map past a Mul, Add, Sub or Div by a constant, which goes into it.

    Raises
    ------
    Refusal
        When the other input is no constant, or makes the tensor larger.
    """
    stored = _constant(node, index, plan)
    constant = stored.reshape(_aligned(node, stored, index, over.rank, plan))
    if direction == "up":
        _check_growth(node, index, stored, constant, plan)
    sizes = plan.shape_of(node.inputs[index]) or (None,) * over.rank
    for axis, (size, mine) in enumerate(zip(constant.shape, over.scale.shape, strict=True)):
        if size not in (1, mine) and (len(sizes) != over.rank or size != sizes[axis]):
            raise Refusal(f"the constant of {label(node)} may be larger than what it meets")
    scale, shift = _affine(node, constant, index)
    plan.bypass(node, index)
    if direction == "up":  # first the constant, then the map
        return ChannelMap.of(over.scale * scale, over.scale * shift + over.shift)
    return ChannelMap.of(over.scale * scale, over.shift * scale + shift)


def _check_growth(
    node: ir.Node, index: int, stored: np.ndarray, constant: np.ndarray, plan: Plan
) -> None:
    """Refuse a constant that gives the result more than its computed operand has.

    A leading dimension or a size that broadcasting adds is lost once the operator is taken out.
    """
    if plan.opset < 7 or (stored.size == 1 and stored.ndim < constant.ndim):
        return  # nothing to add, or an opset that broadcasts the constant alone
    sizes = plan.shape_of(node.inputs[index])
    fits = (
        sizes is not None
        and len(sizes) == constant.ndim
        and all(mine in (1, size) for mine, size in zip(constant.shape, sizes, strict=True))
    )
    if not fits:
        raise Refusal(f"the constant of {label(node)} may be larger than what it meets")


def computed_input(node: ir.Node) -> int:
    """Return which input of a node is computed, where the other is constant."""
    return 1 if resolve(node.inputs[0]).known and not resolve(node.inputs[-1]).known else 0


def _constant(node: ir.Node, index: int, plan: Plan) -> np.ndarray:
    if len(node.inputs) != 2:
        raise Refusal(f"{label(node)} has {len(node.inputs)} inputs")
    other = resolve(node.inputs[1 - index])
    if not other.known:
        raise Refusal(f"{label(node)} stands between and combines it with what is {other.source}")
    return plan.read(node, 1 - index, "constant").exact()


def _affine(node: ir.Node, values: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what the node does to its computed input, as a scale and a shift."""
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if node.op_type == "Mul":
        return values, zeros
    if node.op_type == "Add":
        return ones, values
    if node.op_type == "Sub":
        return (ones, -values) if index == 0 else (-ones, values)
    if index == 0 and values.all():
        return 1 / values, zeros
    raise Refusal(f"{label(node)} divides by {'0' if index == 0 else 'it'}")


def _aligned(node: ir.Node, constant: np.ndarray, index: int, rank: int, plan: Plan) -> list[int]:
    """Return the shape of the constant with a dimension for each of what it meets."""
    shape = list(constant.shape)
    if plan.opset < 7:
        shape = _old_alignment(node, shape, index, rank)
    if len(shape) > rank:
        raise Refusal(f"the constant of {label(node)} has more dimensions than what it meets")
    return [1] * (rank - len(shape)) + shape


def _old_alignment(node: ir.Node, shape: list[int], index: int, rank: int) -> list[int]:
    if not node.attributes.get_int("broadcast", 0):
        return shape
    if index != 0:
        raise Refusal(f"{label(node)} broadcasts the computed operand")
    axis = node.attributes.get_int("axis", rank - len(shape))
    axis = axis + rank if axis < 0 else axis
    return [1] * axis + shape + [1] * (rank - axis - len(shape))
