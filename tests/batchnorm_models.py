"""A BatchNormalization node of any opset in a small model, and onnxruntime run plainly on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

PARAMETERS = ("scale", "B", "mean", "var")


def parameters(channels: int = 3, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Seeded, distinct scale, B, mean and var > 0."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=channels) for name in PARAMETERS}
    drawn["var"] = rng.uniform(0.5, 2.0, channels)
    return {name: array.astype(dtype) for name, array in drawn.items()}


def node(outputs: Sequence[str] = ("y",), *, x: str = "x", **attributes: Any) -> onnx.NodeProto:
    """A BatchNormalization of x with parameters of their own names."""
    return helper.make_node("BatchNormalization", [x, *PARAMETERS], list(outputs), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 15,
    shape: Sequence[int | str | None] = ("N", 3, "H", "W"),
    dtype: int = onnx.TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model from x to y; the initializers are ``parameters()`` unless given."""
    initializers = parameters() if initializers is None else initializers
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def batch_norm(
    opset: int = 15, outputs: Sequence[str] = ("y",), **attributes: Any
) -> onnx.ModelProto:
    """A model of one BatchNormalization node over (N, 3, H, W)."""
    if opset < 6:
        attributes.setdefault("consumed_inputs", [0, 0, 0, 1, 1])
    return model([node(outputs, **attributes)], opset=opset)


def run(
    proto: onnx.ModelProto, x: np.ndarray, *, optimize: bool = True, times: int = 1
) -> dict[str, np.ndarray]:
    """The outputs, by name, of the last of some runs of one CPU session."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for _ in range(times):
        values = session.run(None, {"x": x})
    return dict(zip([output.name for output in session.get_outputs()], values, strict=True))
