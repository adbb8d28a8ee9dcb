"""Convolution in float64, of slices and matrix products: onnxruntime has no such kernel."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import onnx_ir as ir

from .constants import resolve
from .surgery import Names, Patch

__all__ = ["spell_convolution"]

_STACKED = 4  # times the size of the result is what a stack of all positions of a kernel may take
_TO_THE_END = 2**31 - 1


def spell_convolution(node: ir.Node, names: Names, opset: int) -> bool:
    """Replace a Conv by products over its kernel's positions; False if it cannot be.

    It cannot where the weights are not constant, or where the padding or, before opset 10, the
    stride depends on sizes that are not known.

    Source: ONNX Conv, opset 1 and later.
    """
    x, weight = node.inputs[:2]
    w = resolve(weight).array
    if x is None or w is None or w.ndim < 3:
        return False
    window = _Window.of(node, w.shape[2:], _spatial(x))
    if window is None or (opset < 10 and max(window.strides) > 1 and not window.sizes):
        return False
    groups = node.attributes.get_int("group", 1)
    out_channels, per_group = w.shape[:2]
    patch = Patch(node, names)
    if any(window.pads):
        x = _pad(patch, x, window, opset)
    apart = patch.constant(np.array([0, groups, per_group, -1]), "groups")
    w = w.astype(np.float64)
    w = w.reshape(groups, out_channels // groups, per_group, -1)
    parts, last = [], None
    for offset in itertools.product(*map(range, window.kernel)):
        last = _slice(patch, x, window, offset, opset)
        parts.append(patch.op("Reshape", [last, apart]))
    if per_group * len(parts) <= _STACKED * out_channels // groups:
        stacked = patch.op("Concat", parts, {"axis": 2})
        flat = np.moveaxis(w, 3, 2).reshape(*w.shape[:2], -1)
        y = patch.op("MatMul", [patch.constant(flat, "weight"), stacked])
    else:
        terms = (
            patch.op("MatMul", [patch.constant(w[..., k].copy(), "weight"), part])
            for k, part in enumerate(parts)
        )
        y = next(terms)
        for term in terms:
            y = patch.op("Add", [y, term])
    axes = patch.constant(np.arange(2, 2 + len(window.kernel)), "axes")
    sizes = patch.op("Gather", [patch.op("Shape", [last]), axes], {"axis": 0})
    front = patch.constant(np.array([0, out_channels]), "front")
    y = patch.op("Reshape", [y, patch.op("Concat", [front, sizes], {"axis": 0})])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        column = [-1, *[1] * len(window.kernel)]
        wide = patch.op("Cast", [node.inputs[2]], {"to": ir.DataType.DOUBLE.value})
        beside = patch.op("Reshape", [wide, patch.constant(np.array(column), "column")])
        y = patch.op("Add", [y, beside])
    patch.replace([y])
    return True


def _pad(patch: Patch, x: ir.Value, window: _Window, opset: int) -> ir.Value:
    half = len(window.pads) // 2
    pads = [0, 0, *window.pads[:half], 0, 0, *window.pads[half:]]
    if opset < 11:
        return patch.op("Pad", [x], {"pads": pads})
    return patch.op("Pad", [x, patch.constant(np.array(pads), "pads")])


def _slice(
    patch: Patch, x: ir.Value, window: _Window, offset: tuple[int, ...], opset: int
) -> ir.Value:
    """The values of x that one position of the kernel meets, shape (N, C, *output)."""
    starts, ends, axes = [], [], list(range(2, 2 + len(offset)))
    for i, (position, size, step) in enumerate(
        zip(offset, window.kernel, window.dilations, strict=True)
    ):
        if opset < 10 and window.strides[i] > 1:
            span = window.sizes[i] - step * (size - 1 - position)
            indices = np.arange(position * step, span, window.strides[i])
            x = patch.op("Gather", [x, patch.constant(indices, "indices")], {"axis": 2 + i})
        starts.append(position * step)
        ends.append(-step * (size - 1 - position) or _TO_THE_END)
    if opset < 10:
        rest = [i for i, stride in enumerate(window.strides) if stride == 1]
        if not rest:
            return x
        chosen = {"axes": axes, "starts": starts, "ends": ends}
        return patch.op("Slice", [x], {k: [v[i] for i in rest] for k, v in chosen.items()})
    given = (starts, ends, axes, window.strides)
    names = ("starts", "ends", "axes", "steps")
    return patch.op(
        "Slice",
        [x, *(patch.constant(np.array(g), n) for g, n in zip(given, names, strict=True))],
    )


@dataclasses.dataclass(frozen=True)
class _Window:
    """How a Conv steps over its input; `sizes` are the padded input's, empty when not known."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, node: ir.Node, kernel: tuple[int, ...], sizes: tuple[int, ...] | None
    ) -> _Window | None:
        """Read a node's attributes; None where its padding depends on a size not known."""
        ones, dims = (1,) * len(kernel), len(kernel)
        strides = tuple(node.attributes.get_ints("strides", ones) or ones)
        dilations = tuple(node.attributes.get_ints("dilations", ones) or ones)
        pads = tuple(node.attributes.get_ints("pads", ()) or (0,) * 2 * dims)
        auto = node.attributes.get_string("auto_pad", "NOTSET")
        if auto.startswith("SAME"):
            if sizes is None and max(strides) > 1:
                return None
            known = sizes or (1,) * dims  # with a stride of 1 the size cancels out
            total = [
                max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
                for n, s, k, d in zip(known, strides, kernel, dilations, strict=True)
            ]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = tuple([*more, *less] if auto == "SAME_LOWER" else [*less, *more])
        elif auto == "VALID":
            pads = (0,) * 2 * dims
        if min(pads) < 0:
            return None
        padded = (
            ()
            if sizes is None
            else tuple(n + pads[i] + pads[i + dims] for i, n in enumerate(sizes))
        )
        return cls(kernel, strides, dilations, pads, padded)


def _spatial(x: ir.Value) -> tuple[int, ...] | None:
    dims = () if x.shape is None else tuple(x.shape)[2:]
    known = tuple(dim for dim in dims if isinstance(dim, int) and dim > 0)
    return known if known and len(known) == len(dims) else None
