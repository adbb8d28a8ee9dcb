"""Run small ONNX graphs in float64 with plain loops: slow, and with nothing shared with cbn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Arrays = dict[str, np.ndarray]


def evaluate(
    model: onnx.ModelProto,
    x: np.ndarray,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    magnitudes: bool = False,
) -> Arrays:
    """The outputs of a model in float64, of its first input.

    `constants` stand in for initializers of the same name. With `magnitudes` every constant and x
    are taken without their signs and nothing is subtracted, which bounds each sum of products by
    the sum of their sizes.
    """
    values: Arrays = {t.name: wide(numpy_helper.to_array(t)) for t in model.graph.initializer}
    values.update(constants or {})
    values[model.graph.input[0].name] = wide(x)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if magnitudes:
        values = {k: np.abs(v) if v.dtype.kind == "f" else v for k, v in values.items()}
    for node in model.graph.node:
        run = Node(node, values, opset, magnitudes)
        values[node.output[0]] = OPERATORS[node.op_type](run)
    return {output.name: values[output.name] for output in model.graph.output}


def wide(array: np.ndarray) -> np.ndarray:
    """Floats as float64, integers as they are."""
    return array if array.dtype.kind in "iub" else array.astype(np.float64)


class Node:
    """One node with its inputs and attributes at hand."""

    def __init__(self, proto: onnx.NodeProto, values: Arrays, opset: int, magnitudes: bool) -> None:
        self.type = proto.op_type
        self.inputs = [values[name] if name else None for name in proto.input]
        self.attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        self.opset = opset
        self.magnitudes = magnitudes

    @property
    def x(self) -> np.ndarray:
        value = self.inputs[0]
        assert value is not None
        return value

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def input(self, index: int) -> np.ndarray | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def ints(self, name: str, index: int, default: Any = None) -> Any:
        """What is an attribute in old opsets and an input in new ones."""
        value = self.input(index)
        return [int(i) for i in np.ravel(value)] if value is not None else self.get(name, default)


def windows(node: Node, kernel: tuple[int, ...], fill: float) -> tuple[np.ndarray, ...]:
    """x padded with `fill`, whether each place is padding, and where each window starts."""
    rank = len(kernel)
    strides = node.get("strides", [1] * rank)
    dilations = node.get("dilations", [1] * rank)
    pads = list(node.get("pads", [0] * 2 * rank))
    mode = node.get("auto_pad", b"NOTSET").decode()
    sizes = node.x.shape[2:]
    if mode.startswith("SAME"):
        for axis in range(rank):
            count = -(-sizes[axis] // strides[axis])
            reach = (count - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            total = max(reach - sizes[axis], 0)
            small = total // 2
            first = small if mode == "SAME_UPPER" else total - small
            pads[axis], pads[axis + rank] = first, total - first
    around = [(0, 0), (0, 0), *((pads[a], pads[a + rank]) for a in range(rank))]
    padded = np.pad(node.x, around, constant_values=fill)
    outside = np.pad(np.zeros(node.x.shape, bool), around, constant_values=True)
    starts = [
        range(0, padded.shape[a + 2] - (kernel[a] - 1) * dilations[a], strides[a])
        for a in range(rank)
    ]
    return padded, outside, starts, dilations


def conv(node: Node) -> np.ndarray:
    weight, groups = node.inputs[1], node.get("group", 1)
    kernel = weight.shape[2:]
    padded, _, starts, dilations = windows(node, kernel, 0.0)
    outputs, share = weight.shape[:2]
    y = np.zeros((node.x.shape[0], outputs, *map(len, starts)))
    for place in itertools.product(*(range(len(s)) for s in starts)):
        cut = tuple(
            slice(s[p], s[p] + (k - 1) * d + 1, d)
            for s, p, k, d in zip(starts, place, kernel, dilations, strict=True)
        )
        patch = padded[(slice(None), slice(None), *cut)]
        for group in range(groups):
            mine = patch[:, group * share : (group + 1) * share].reshape(len(y), -1)
            rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
            y[(slice(None), rows, *place)] = mine @ weight[rows].reshape(-1, mine.shape[1]).T
    bias = node.input(2)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(kernel))


def conv_transpose(node: Node) -> np.ndarray:
    weight, groups = node.inputs[1], node.get("group", 1)
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides = node.get("strides", [1] * rank)
    pads = node.get("pads", [0] * 2 * rank)
    extra = node.get("output_padding", [0] * rank)
    x, share = node.x, weight.shape[1]
    full = [(x.shape[a + 2] - 1) * strides[a] + kernel[a] + extra[a] for a in range(rank)]
    y = np.zeros((x.shape[0], share * groups, *full))
    for place in itertools.product(*map(range, x.shape[2:])):
        cut = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, strides, kernel, strict=True))
        for channel in range(x.shape[1]):
            group = channel // (x.shape[1] // groups)
            into = (slice(None), slice(group * share, (group + 1) * share), *cut)
            value = x[(slice(None), channel, *place)].reshape(-1, *[1] * (rank + 1))
            y[into] += value * weight[channel]
    inside = tuple(slice(pads[a], full[a] - pads[a + rank]) for a in range(rank))
    y = y[(slice(None), slice(None), *inside)]
    bias = node.input(2)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def gemm(node: Node) -> np.ndarray:
    a, b, c = node.x, node.inputs[1], node.input(2)
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if node.magnitudes:
        alpha, beta = abs(alpha), abs(beta)
    return alpha * (a @ b) + (0 if c is None else beta * c)


def batch_norm(node: Node) -> np.ndarray:
    scale, bias, mean, var = (v.reshape(-1, *[1] * (node.x.ndim - 2)) for v in node.inputs[1:5])
    deviation = np.sqrt(var + np.float64(np.float32(node.get("epsilon", 1e-5))))
    centered = node.x + mean if node.magnitudes else node.x - mean
    return centered / deviation * scale + bias


def elementwise(node: Node) -> np.ndarray:
    a, b = node.inputs
    if node.opset < 7 and "axis" in node.attributes:
        b = b.reshape(*b.shape, *[1] * (a.ndim - b.ndim - node.get("axis", 0)))
    if node.type == "Add" or (node.type == "Sub" and node.magnitudes):
        return a + b
    return a * b if node.type == "Mul" else a - b if node.type == "Sub" else a / b


def pool(node: Node) -> np.ndarray:
    kernel = tuple(node.get("kernel_shape", node.x.shape[2:]))
    highest = "Max" in node.type
    padded, outside, starts, dilations = windows(node, kernel, -np.inf if highest else 0.0)
    y = np.zeros((*node.x.shape[:2], *map(len, starts)))
    for place in itertools.product(*(range(len(s)) for s in starts)):
        cut = tuple(
            slice(s[p], s[p] + (k - 1) * d + 1, d)
            for s, p, k, d in zip(starts, place, kernel, dilations, strict=True)
        )
        patch = padded[(slice(None), slice(None), *cut)].reshape(*y.shape[:2], -1)
        missing = outside[(slice(None), slice(None), *cut)].reshape(*y.shape[:2], -1)[0, 0]
        if highest:
            y[(slice(None), slice(None), *place)] = patch.max(axis=-1)
        else:
            count = patch.shape[-1] if node.get("count_include_pad", 0) else (~missing).sum()
            y[(slice(None), slice(None), *place)] = patch.sum(axis=-1) / count
    return y


def pad(node: Node) -> np.ndarray:
    pads = node.ints("pads", 1)
    rank = node.x.ndim
    axes = node.ints("axes", 3) or range(rank)
    around = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        around[axis] = (pads[i], pads[i + len(pads) // 2])
    mode = node.get("mode", b"constant").decode()
    if mode != "constant":
        return np.pad(node.x, around, mode={"reflect": "reflect", "edge": "edge"}[mode])
    given = node.input(2)
    value = node.get("value", 0.0) if given is None else float(np.ravel(given)[0])
    return np.pad(node.x, around, constant_values=abs(value) if node.magnitudes else value)


def reshape(node: Node) -> np.ndarray:
    if node.type == "Flatten":
        axis = node.get("axis", 1)
        return node.x.reshape(int(np.prod(node.x.shape[:axis])), -1)
    target = node.ints("shape", 1)
    return node.x.reshape([node.x.shape[i] if d == 0 else d for i, d in enumerate(target)])


def reduce_mean(node: Node) -> np.ndarray:
    axes = tuple(node.ints("axes", 1))
    return node.x.mean(axis=axes, keepdims=bool(node.get("keepdims", 1)))


def constant(node: Node) -> np.ndarray:
    array = wide(numpy_helper.to_array(node.attributes["value"]))
    return np.abs(array) if node.magnitudes and array.dtype.kind == "f" else array


def constant_of_shape(node: Node) -> np.ndarray:
    fill = wide(numpy_helper.to_array(node.attributes["value"]))[0]
    return np.full([int(d) for d in node.x], abs(fill) if node.magnitudes else fill)


OPERATORS: dict[str, Callable[[Node], np.ndarray]] = {
    "Add": elementwise,
    "AveragePool": pool,
    "BatchNormalization": batch_norm,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Div": elementwise,
    "Dropout": lambda node: node.x,
    "Flatten": reshape,
    "Gemm": gemm,
    "GlobalAveragePool": lambda node: node.x.mean(axis=tuple(range(2, node.x.ndim)), keepdims=True),
    "GlobalMaxPool": lambda node: node.x.max(axis=tuple(range(2, node.x.ndim)), keepdims=True),
    "Identity": lambda node: node.x,
    "MatMul": lambda node: node.inputs[0] @ node.inputs[1],
    "MaxPool": pool,
    "Mul": elementwise,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": lambda node: np.maximum(node.x, 0),
    "Reshape": reshape,
    "Squeeze": lambda node: np.squeeze(node.x, tuple(node.ints("axes", 1))),
    "Sub": elementwise,
    "Transpose": lambda node: node.x.transpose(node.get("perm", range(node.x.ndim)[::-1])),
    "Unsqueeze": lambda node: np.expand_dims(node.x, tuple(node.ints("axes", 1))),
}
