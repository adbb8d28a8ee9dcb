"""Small ONNX models with BatchNormalization nodes, made with onnx's own helpers, and a plain run.

Models of ``batch_norm_node`` have short names and channels over (N, 3, L); those of ``plain_node``
have ONNX's own names for the parameters, no node names, and images (N, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 3

PARAMETERS = ("scale", "B", "mean", "var")


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


def named_parameters(channels: int = CHANNELS, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """`parameters` by ONNX's own names."""
    arrays = parameters(channels, np.dtype(dtype).name)
    return dict(zip(PARAMETERS, arrays.values(), strict=True))


def plain_node(
    outputs: Sequence[str] = ("y",), *, x: str = "x", **attributes: Any
) -> onnx.NodeProto:
    """A node without a name, of parameters with ONNX's own names."""
    return helper.make_node("BatchNormalization", [x, *PARAMETERS], list(outputs), **attributes)


def plain_model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 15,
    shape: Sequence[int | str | None] = ("N", CHANNELS, "H", "W"),
    dtype: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model from x to y; the initializers are `named_parameters` unless given."""
    return make_model(
        nodes,
        arrays=named_parameters() if initializers is None else dict(initializers),
        opset=opset,
        shape=shape,
        dtype=helper.tensor_dtype_to_np_dtype(dtype).name,
        functions=functions,
    )


def of_opset(
    opset: int = 15, outputs: Sequence[str] = ("y",), **attributes: Any
) -> onnx.ModelProto:
    """A model of one `plain_node`."""
    if opset < 6:
        attributes.setdefault("consumed_inputs", [0, 0, 0, 1, 1])
    return plain_model([plain_node(outputs, **attributes)], opset=opset)


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
