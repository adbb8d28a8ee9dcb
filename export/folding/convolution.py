"""Fold into Conv and ConvTranspose, from behind and from before.

Source: ONNX Conv (opset 1, 11, 22) and ConvTranspose (opset 1, 11, 22): the weight of Conv is
(M, C/group, k...), that of ConvTranspose (C, M/group, k...), a bias is (M,).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .channels import ChannelMap
from .plan import Plan, fixed_ints
from .reasons import Refusal, label

__all__ = ["after", "before"]


def after(node: ir.Node, over: ChannelMap, plan: Plan) -> None:
    """Plan the convolution of which the result is already scaled and shifted.

    Raises
    ------
    Refusal
        When the weight or the bias is no constant, or the scale does not lie along the channels.
    """
    weight = plan.read(node, 1, "weight")
    exact = weight.exact()
    groups, outputs = _layout(node, exact)
    scale, shift = over.along(1, outputs, f"{label(node)} gives")
    plan.own(node, 1, "weight")
    if node.op_type == "Conv":
        factor = scale.reshape(-1, *[1] * (exact.ndim - 1))
    else:
        factor = scale.reshape(groups, 1, -1, *[1] * (exact.ndim - 2))
        factor = np.repeat(factor, exact.shape[0] // groups, axis=1)
        factor = factor.reshape(exact.shape[0], -1, *[1] * (exact.ndim - 2))
    plan.put(node, 1, lambda: weight.exact() * factor, weight.dtype, "weight")
    bias = _bias(node, outputs, plan)
    plan.put(node, 2, lambda: bias * scale + shift, weight.dtype, "bias")


def before(node: ir.Node, index: int, over: ChannelMap, plan: Plan) -> None:
    """Plan the convolution that scales and shifts its input itself.

    Raises
    ------
    Refusal
        When the weight or the bias is no constant, or the shift would have to reach places that
        the convolution takes from its zero padding.
    """
    if index != 0:
        raise Refusal(f"it makes the {('weight', 'bias')[index - 1]} of {label(node)}")
    weight = plan.read(node, 1, "weight")
    exact = weight.exact()
    groups, outputs = _layout(node, exact)
    kernel = [1] * (exact.ndim - 2)
    transposed = node.op_type == "ConvTranspose"
    inputs = exact.shape[0] if transposed else exact.shape[1] * groups
    scale, shift = over.along(1, inputs, f"{label(node)} reads")
    plan.own(node, 1, "weight")
    if transposed:
        factor, offset = (v.reshape(-1, 1, *kernel) for v in (scale, shift))
        taps = (exact * offset).reshape(groups, -1, *exact.shape[1:]).sum(axis=1)
    else:
        # Row m of the weight belongs to group m // (M / group), which reads its share of C.
        factor, offset = (
            np.repeat(v.reshape(groups, -1), outputs // groups, axis=0).reshape(
                outputs, -1, *kernel
            )
            for v in (scale, shift)
        )
        taps = (exact * offset).sum(axis=1)
    taps = taps.reshape(outputs, -1)  # what a constant input adds, tap by tap
    if taps.any():
        _check_reach(node, exact.shape[2:], plan)
        bias = _bias(node, outputs, plan)
        plan.put(node, 2, lambda: bias + taps.sum(axis=1), weight.dtype, "bias")
    plan.put(node, 1, lambda: weight.exact() * factor, weight.dtype, "weight")


def _layout(node: ir.Node, weight: np.ndarray) -> tuple[int, int]:
    """Return the number of groups and of output channels."""
    groups = node.attributes.get_int("group", 1)
    if weight.ndim < 3 or groups < 1 or weight.shape[0] % groups or not weight.size:
        raise Refusal(
            f"the weight of {label(node)} has shape {list(weight.shape)}, group is {groups}"
        )
    return groups, weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * groups


def _bias(node: ir.Node, outputs: int, plan: Plan) -> np.ndarray:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(outputs)
    bias = plan.read(node, 2, "bias").exact()
    if bias.shape != (outputs,):
        raise Refusal(
            f"the bias of {label(node)} has shape {list(bias.shape)}, expected [{outputs}]"
        )
    return bias


def _check_reach(node: ir.Node, kernel: tuple[int, ...], plan: Plan) -> None:
    """Refuse where a constant input does not add the same everywhere."""
    if node.op_type == "ConvTranspose":
        if not _all_taps_everywhere(node, kernel):
            raise Refusal(
                f"its shift is not 0, and {label(node)} adds it more often in the middle than at "
                "edges and between strides"
            )
    elif _any_padding(node, kernel, plan):
        raise Refusal(
            f"its shift is not 0, and {label(node)} pads with zeros that it does not reach"
        )


def _all_taps_everywhere(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    """Whether every result of a ConvTranspose has a share of every tap of its kernel."""
    rank = len(kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode not in ("", "NOTSET", "VALID") or "output_shape" in node.attributes:
        return False
    pads = [0] * 2 * rank if mode == "VALID" else fixed_ints(node, "pads", [0] * 2 * rank)
    dilations = fixed_ints(node, "dilations", [1] * rank)
    cut = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=False)] * 2
    return (
        set(fixed_ints(node, "strides", [1])) == {1}
        and not any(fixed_ints(node, "output_padding", [0]))
        and all(pad >= reach for pad, reach in zip(pads, cut, strict=False))
    )


def _any_padding(node: ir.Node, kernel: tuple[int, ...], plan: Plan) -> bool:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("", "NOTSET"):
        return any(fixed_ints(node, "pads", [0]))
    if mode == "VALID":
        return False
    if math.prod(kernel) == 1:
        return False
    # SAME_*: as much as makes the output ceil(input / stride) long.
    shape = plan.shape_of(node.inputs[0]) or (None,) * (len(kernel) + 2)
    strides = fixed_ints(node, "strides", [1] * len(kernel))
    dilations = fixed_ints(node, "dilations", [1] * len(kernel))
    for size, taps, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=False):
        if not isinstance(size, int):
            return True
        if (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 > size:
            return True
    return False
