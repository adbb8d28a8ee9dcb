"""Small ONNX models with BatchNormalization nodes, written node by node with onnx's own helpers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 3


def parameters(channels: int = CHANNELS, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Seeded scale, bias, mean and var by the names s, b, m, v."""
    generator = np.random.default_rng(7)
    return {
        "s": generator.uniform(0.5, 2, channels).astype(dtype),
        "b": generator.normal(size=channels).astype(dtype),
        "m": generator.normal(size=channels).astype(dtype),
        "v": generator.uniform(0.5, 2, channels).astype(dtype),
    }


def batch_norm_node(
    x: str = "x",
    y: str = "y",
    *,
    training: bool = False,
    opset: int = 15,
    inputs: Sequence[str] = ("s", "b", "m", "v"),
    **attributes: Any,
) -> onnx.NodeProto:
    """A node named bn_<y>; in training mode its further outputs are <y>_mean, <y>_var, ..."""
    outputs = [y]
    if training:
        outputs += [f"{y}_mean", f"{y}_var"]
        if opset < 14:
            outputs += [f"{y}_saved_mean", f"{y}_saved_var"]
        else:
            attributes["training_mode"] = 1
    return helper.make_node(
        "BatchNormalization", [x, *inputs], outputs, name=f"bn_{y}", **attributes
    )


def make_model(
    nodes: Sequence[onnx.NodeProto],
    *,
    shape: Sequence[int | str | None] = ("N", CHANNELS, "L"),
    outputs: Sequence[str] = ("y",),
    arrays: dict[str, np.ndarray] | None = None,
    dtype: str = "float32",
    opset: int = 15,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    output_types: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A model with the input x of `shape` and, unless other arrays are given, `parameters`."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = parameters(dtype=dtype) if arrays is None else arrays
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", kind, shape), *inputs],
        [
            helper.make_tensor_value_info(name, (output_types or {}).get(name, kind), None)
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1) for domain in {f.domain for f in functions}]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def single(
    *, training: bool = False, opset: int = 15, dtype: str = "float32", **kwargs: Any
) -> onnx.ModelProto:
    """A model of one node, from x to y."""
    node = batch_norm_node(training=training, opset=opset)
    return make_model([node], opset=opset, dtype=dtype, **kwargs)


def flag(name: str) -> onnx.ValueInfoProto:
    """A scalar boolean input."""
    return helper.make_tensor_value_info(name, TensorProto.BOOL, [])
