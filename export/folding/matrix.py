"""Fold into Gemm and MatMul, from behind and from before, whichever side is constant.

Source: ONNX Gemm (opset 1, 6, 7, 9, 11, 13): ``alpha * A' @ B' + beta * C``, where C is optional
from opset 11 on; MatMul (opset 1, 9, 13).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..constants import resolve
from .channels import ChannelMap
from .plan import Plan
from .reasons import Refusal, label

__all__ = ["after", "before"]


def after(node: ir.Node, over: ChannelMap, plan: Plan) -> None:
    """Plan the product of which the result is already scaled and shifted.

    Raises
    ------
    Refusal
        When no operand is constant, or the scale does not lie along the axis that the constant
        one gives the result.
    """
    side = _constant_side(node, plan)
    weight = plan.read(node, side, "weight")
    matrix = _as_factor(node, side, weight.exact())
    axis = -1 if side else -2
    scale, shift = over.along(axis, matrix.shape[axis], f"{label(node)} gives")
    plan.own(node, side, "weight")
    factor = _as_factor(node, side, _beside(scale, axis))
    plan.put(node, side, lambda: weight.exact() * factor, weight.dtype, "weight")
    if node.op_type == "Gemm":
        _put_gemm_bias(node, _beside(scale, axis), _beside(shift, axis), weight.dtype, plan)
    elif shift.any():
        _check_suffix(plan, side)
        plan.add_after(node, shift if side else shift[:, None], weight.dtype)


def before(node: ir.Node, index: int, over: ChannelMap, plan: Plan) -> None:
    """Plan the product that scales and shifts its computed operand itself.

    Raises
    ------
    Refusal
        When the other operand is no constant, or the scale does not lie along the axis that is
        summed over.
    """
    if index > 1:
        raise Refusal(f"it makes the C of {label(node)}, beside a computed product")
    side = 1 - index
    if node.inputs[side] is node.inputs[index]:
        raise Refusal(f"it makes both operands of {label(node)}")
    weight = plan.read(node, side, "weight")
    matrix = _as_factor(node, side, weight.exact())
    summed = -2 if side else -1  # the axis of the constant that is summed over
    own = -3 - summed  # and that of the computed operand
    if _transposed(node, index):
        own = -3 - own
    scale, shift = over.along(own, matrix.shape[summed], f"{label(node)} reads")
    plan.own(node, side, "weight")
    factor = _as_factor(node, side, _beside(scale, summed))
    plan.put(node, side, lambda: weight.exact() * factor, weight.dtype, "weight")
    added = shift[None, :] @ matrix if side else matrix @ shift[:, None]
    if not added.any():
        return
    if node.op_type == "Gemm":
        alpha = _float(node, "alpha")
        _put_gemm_bias(node, np.ones((1, 1)), alpha * added, weight.dtype, plan)
    else:
        _check_suffix(plan, side)
        added = added[0] if side and added.ndim == 2 else added
        if not _into_next_add(node, added, plan):
            plan.add_after(node, added, weight.dtype)


def _into_next_add(node: ir.Node, added: np.ndarray, plan: Plan) -> bool:
    """Plan to put a constant term into an Add behind the node, if there is one."""
    value = node.outputs[0]
    users = list(value.uses())
    if plan.opset < 7 or len(users) != 1 or value.is_graph_output():
        return False
    add, index = users[0]
    if add.op_type != "Add" or add.domain != "" or len(add.inputs) != 2:
        return False
    try:
        bias = plan.read(add, 1 - index, "constant")
        plan.put(add, 1 - index, lambda: bias.exact() + added, bias.dtype, "constant")
    except Refusal:
        return False
    plan.moved.append(str(value.name))
    return True


def _constant_side(node: ir.Node, plan: Plan) -> int:
    """Return which operand to fold into: the right one, unless only the left one is constant."""
    try:
        plan.read(node, 1, "weight")
    except Refusal:
        if not resolve(node.inputs[0]).known:
            raise
        return 0
    return 1


def _transposed(node: ir.Node, side: int) -> bool:
    name = ("transA", "transB")[side]
    return node.op_type == "Gemm" and bool(node.attributes.get_int(name, 0))


def _as_factor(node: ir.Node, side: int, matrix: np.ndarray) -> np.ndarray:
    """Turn a stored operand into the factor of the product, or back."""
    if matrix.ndim < 2 or (node.op_type == "Gemm" and matrix.ndim != 2):
        raise Refusal(f"the weight of {label(node)} has shape {list(matrix.shape)}")
    return np.swapaxes(matrix, -1, -2) if _transposed(node, side) else matrix


def _beside(vector: np.ndarray, axis: int) -> np.ndarray:
    return vector[None, :] if axis == -1 else vector[:, None]


def _put_gemm_bias(
    node: ir.Node, scale: np.ndarray, shift: np.ndarray, dtype: np.dtype, plan: Plan
) -> None:
    """``beta * C * scale + shift`` as the new C, with beta 1."""
    old = np.zeros((1, 1))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        stored = plan.read(node, 2, "C").exact()
        if stored.ndim > 2:
            raise Refusal(f"the C of {label(node)} has shape {list(stored.shape)}")
        old = stored * _float(node, "beta")
    new = old * scale + shift
    if new.shape[0] == 1:
        new = new[0]
    plan.put(node, 2, lambda: new, dtype, "C")
    plan.set(node, "beta", 1.0)
    if plan.opset < 7:
        plan.set(node, "broadcast", 1)


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(np.float32(attribute.as_float()))


def _check_suffix(plan: Plan, side: int) -> None:
    if plan.opset < 7 and not side:
        raise Refusal("an Add of opset 6 or below cannot add its shift along that axis")
