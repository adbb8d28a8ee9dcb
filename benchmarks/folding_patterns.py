"""Small graphs with one or two batch norms, for ``python -m benchmarks.folding --patterns``.

Each is a chain from x to y with seeded weights, channels on axis 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = (2, 3, 6, 6)
ROWS = (5, 3)

Layer = tuple[str, dict[int, np.ndarray], dict[str, Any]]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norm(channels: int, seed: int = 1, *, shift: bool = True, **attributes: Any) -> Layer:
    scale, bias, mean = draw(3, channels, seed=seed) + np.float32(0.1)
    var = np.abs(draw(channels, seed=seed + 1)) + np.float32(0.5)
    if not shift:
        bias = mean = np.zeros(channels, np.float32)
    return "BatchNormalization", {1: np.abs(scale), 2: bias, 3: mean, 4: var}, attributes


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3, **attributes: Any) -> Layer:
    weight = draw(outputs, inputs, kernel, kernel, seed=3)
    return "Conv", {1: weight, 2: draw(outputs, seed=4)}, attributes


def broken() -> Layer:
    op, constants, attributes = conv()
    weight = constants[1].copy()
    weight[0] = np.nan
    return op, {**constants, 1: weight}, attributes


TRANSPOSED: Layer = ("ConvTranspose", {1: draw(4, 2, 3, 3)}, {"group": 2})
GEMM: Layer = ("Gemm", {1: draw(3, 4), 2: draw(4)}, {})
PRODUCT: Layer = ("MatMul", {1: draw(3, 4)}, {})
COLUMN = draw(4, 1, 1, seed=5)
FRAME = np.array([0, 0, 1, 1, 0, 0, 1, 1])

PATTERNS: dict[str, tuple[list[Layer], tuple[int, ...]]] = {
    "Conv, BN": ([conv(), norm(4)], IMAGE),
    "ConvTranspose of 2 groups, BN": ([conv(), TRANSPOSED, norm(4)], IMAGE),
    "Gemm, BN": ([GEMM, norm(4)], ROWS),
    "MatMul, Add, BN": ([PRODUCT, ("Add", {1: draw(4)}, {}), norm(4)], ROWS),
    "BN, Conv": ([norm(3), conv()], IMAGE),
    "BN without shift, padded Conv": ([norm(3, shift=False), conv(pads=[1] * 4)], IMAGE),
    "BN, Gemm": ([norm(3), GEMM], ROWS),
    "BN, Flatten, Gemm": (
        [norm(3), ("Flatten", {}, {}), ("Gemm", {1: draw(108, 4)}, {})],
        IMAGE,
    ),
    "Conv, AveragePool, BN": (
        [conv(), ("AveragePool", {}, {"kernel_shape": [2, 2]}), norm(4)],
        IMAGE,
    ),
    "Conv, reflecting Pad, BN": (
        [conv(), ("Pad", {1: FRAME}, {"mode": "reflect"}), norm(4)],
        IMAGE,
    ),
    "Conv, Mul, BN, Add": (
        [conv(), ("Mul", {1: COLUMN}, {}), norm(4), ("Add", {1: COLUMN}, {})],
        IMAGE,
    ),
    "Relu, BN, BN, Relu": ([("Relu", {}, {}), norm(3), norm(3, 5), ("Relu", {}, {})], IMAGE),
    "BN, padded Conv (must stay)": ([norm(3), conv(pads=[1] * 4)], IMAGE),
    "Conv, BN in training mode (must stay)": ([conv(), norm(4, training_mode=1)], IMAGE),
    "Conv with NaN, BN (must stay)": ([broken(), norm(4)], IMAGE),
}


def build(layers: list[Layer], shape: tuple[int, ...]) -> onnx.ModelProto:
    """Write a chain as a model of opset 18."""
    nodes, stored, value = [], [], "x"
    for at, (op, constants, attributes) in enumerate(layers):
        result = "y" if at == len(layers) - 1 else f"v{at}"
        names = [f"{op}_{at}_{index}" for index in constants]
        stored += [
            numpy_helper.from_array(a, n) for a, n in zip(constants.values(), names, strict=True)
        ]
        results = [result]
        if attributes.get("training_mode"):
            results += [f"mean_{at}", f"var_{at}"]
        nodes.append(
            helper.make_node(op, [value, *names], results, name=f"{op}_{at}", **attributes)
        )
        value = result
    kind = TensorProto.FLOAT
    rank = len(shape) if not any(op == "Flatten" for op, _, _ in layers) else 2
    graph = helper.make_graph(
        nodes,
        "pattern",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [None] * rank)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
