"""Carry a scale and shift through Pad, where the padding value can be carried too.

Source: ONNX Pad: opset 1 (attribute paddings), 2 (pads, value), 11 (inputs), 18 (axes), 19 (wrap).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .channels import ChannelMap
from .layout import constant_ints
from .plan import Direction, Plan
from .reasons import Refusal, label
from .rounding import round_once

__all__ = ["carry"]


def carry(node: ir.Node, over: ChannelMap, plan: Plan, direction: Direction) -> ChannelMap:
    """Carry a map of the operator's input to its result ("down"), or the other way ("up").

    Raises
    ------
    Refusal
        When the border would need another value in each channel, or its size is not known.
    """
    padded = _padded_axes(node, over.rank)
    if not padded:
        return over
    mode = node.attributes.get_string("mode", "constant")
    if any(axis in over.varies for axis in padded):
        raise Refusal(f"{label(node)} stands between and pads the axis of its channels")
    if mode != "constant":
        return over  # copies of values inside, which are scaled and shifted like them
    value, has_input = _value(node, plan)
    if direction == "up":
        wanted = value * over.scale + over.shift
    elif (over.scale == 0).any():
        raise Refusal(f"{label(node)} stands between, and some of its scales are 0")
    else:
        wanted = (value - over.shift) / over.scale
    wanted = round_once(wanted, plan.dtype, f"the value of {label(node)}").astype(np.float64)
    if (wanted != wanted.flat[0]).any():
        raise Refusal(
            f"{label(node)} stands between: its border would need another value in each channel "
            f"({wanted.min():.3g} to {wanted.max():.3g})"
        )
    new = float(wanted.flat[0])
    if new == value:
        return over
    if has_input:
        plan.put(node, 2, lambda: np.asarray(new), plan.dtype, "value")
    else:
        plan.set(node, "value", new)
    return over


def _padded_axes(node: ir.Node, rank: int) -> list[int]:
    """Axes with a border; a negative pad crops and needs no value."""
    name = "paddings" if "paddings" in node.attributes else "pads"
    pads = constant_ints(node, name, 1)
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = [a + rank if a < 0 else a for a in constant_ints(node, "axes", 3)]
    if len(pads) != 2 * len(axes):
        raise Refusal(f"{label(node)} has {len(pads)} pads over {rank} dimensions")
    count = len(axes)
    return [axis for i, axis in enumerate(axes) if pads[i] > 0 or pads[i + count] > 0]


def _value(node: ir.Node, plan: Plan) -> tuple[float, bool]:
    """Return the value of the border, and whether this opset takes it as an input."""
    if plan.opset < 11:
        attribute = node.attributes.get("value")
        return 0.0 if attribute is None else float(np.float32(attribute.as_float())), False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        stored = plan.read(node, 2, "value").exact()
        if stored.size != 1:
            raise Refusal(f"the value of {label(node)} has shape {list(stored.shape)}")
        return float(stored.flat[0]), True
    return 0.0, True
