"""The float64 twin computes what the model does, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import helper

from cbn.export.files import ModelError, load
from cbn.export.float64 import LARGEST_WIDENED, Nudge, find_narrow, widen
from cbn.export.sessions import make_session, run_session


def twin_output(model: onnx.ModelProto, x: np.ndarray, nudge: Nudge | None = None) -> np.ndarray:
    opened = load(model)
    twin = widen(opened, find_narrow(opened), nudge)
    result = run_session(make_session(twin, optimize=False), {"x": x})["y"]
    assert result.dtype == np.float64
    return result


def convolve(
    x: np.ndarray, w: np.ndarray, groups: int, strides: Sequence[int], dilations: Sequence[int]
) -> np.ndarray:
    """A convolution without padding, one output at a time."""
    sizes = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True)
    ]
    y = np.empty((len(x), len(w), *sizes))
    per_group = len(w) // groups
    for out in range(len(w)):
        first = out // per_group * w.shape[1]
        part = x[:, first : first + w.shape[1]]
        for place in np.ndindex(*sizes):
            window = tuple(
                slice(p * s, p * s + (k - 1) * d + 1, d)
                for p, s, k, d in zip(place, strides, w.shape[2:], dilations, strict=True)
            )
            y[(slice(None), out, *place)] = (
                (part[(..., *window)] * w[out]).reshape(len(x), -1).sum(1)
            )
    return y


@pytest.mark.parametrize("opset", [9, 10, 13, 18])
@pytest.mark.parametrize(
    ("shape", "weight", "groups", "strides", "dilations"),
    [
        ((2, 4, 9), (6, 4, 3), 1, [2], [1]),
        ((2, 4, 8, 7), (6, 2, 3, 2), 2, [1, 2], [2, 1]),
        ((1, 3, 5, 4, 6), (3, 1, 2, 1, 3), 3, [1, 1, 2], [1, 1, 1]),
        ((2, 5, 6, 6), (20, 5, 1, 1), 1, [1, 1], [1, 1]),
        ((1, 16, 6, 6), (2, 16, 3, 3), 1, [2, 2], [1, 1]),
    ],
)
def test_convolution(
    opset: int,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    groups: int,
    strides: list[int],
    dilations: list[int],
) -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=weight).astype(np.float32), rng.normal(size=weight[0]).astype(np.float32)
    x = rng.normal(size=shape)
    pads = [1, 0, 1][: len(strides)]
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["y"],
        group=groups,
        strides=strides,
        dilations=dilations,
        pads=[*pads, *pads],
    )
    model = onnx_models.make_model([node], arrays={"w": w, "b": b}, shape=shape, opset=opset)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pads)])
    expected = convolve(padded, w.astype(np.float64), groups, strides, dilations)
    expected += b.reshape(-1, *[1] * len(strides))
    error = np.abs(twin_output(model, x) - expected).max()
    assert error <= 64 * np.spacing(np.abs(expected).max())


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_automatic_padding(mode: str, stride: int) -> None:
    w = np.random.default_rng(0).normal(size=(3, 3, 4, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride] * 2, auto_pad=mode)
    model = onnx_models.make_model([node], arrays={"w": w}, shape=(1, 3, 7, 8))
    x = np.random.default_rng(1).normal(size=(1, 3, 7, 8))
    plain = run_session(make_session(model), {"x": x.astype(np.float32)})["y"]
    twin = twin_output(model, x)
    assert twin.shape == plain.shape
    assert np.abs(twin - plain).max() < 1e-5


@pytest.mark.parametrize("opset", [7, 8, 9, 14, 15, 18])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm(opset: int, training: bool) -> None:
    x = np.random.default_rng(2).normal(3, 2, (4, 3, 5))
    stored = onnx_models.parameters()
    s, b, m, v = (stored[name].astype(np.float64).reshape(3, 1) for name in "sbmv")
    if training:
        m, v = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    expected = (x - m) / np.sqrt(v + float(np.float32(1e-5))) * s + b
    actual = twin_output(onnx_models.single(training=training, opset=opset), x)
    assert np.abs(actual - expected).max() <= 64 * np.spacing(np.abs(expected).max())


def test_running_statistics() -> None:
    x = np.random.default_rng(2).normal(3, 2, (4, 3, 5))
    node = onnx_models.batch_norm_node(training=True, momentum=0.75)
    model = onnx_models.make_model([node], outputs=["y", "y_mean", "y_var"])
    twin = make_session(widen(load(model)), optimize=False)
    found = run_session(twin, {"x": x})
    stored = onnx_models.parameters()
    np.testing.assert_allclose(
        found["y_mean"], 0.75 * stored["m"].astype(float) + 0.25 * x.mean((0, 2)), rtol=1e-14
    )
    np.testing.assert_allclose(
        found["y_var"], 0.75 * stored["v"].astype(float) + 0.25 * x.var((0, 2)), rtol=1e-14
    )


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Erf", {}),
        ("AveragePool", {"kernel_shape": [2]}),
        ("GlobalAveragePool", {}),
        ("LeakyRelu", {}),
        ("Mish", {}),
    ],
)
def test_operators_without_a_float64_kernel_run_in_float32(
    op_type: str, attributes: dict[str, Any]
) -> None:
    nodes = [
        onnx_models.batch_norm_node(y="h"),
        helper.make_node(op_type, ["h"], ["y"], **attributes),
    ]
    model = onnx_models.make_model(nodes, opset=18)
    x = np.random.default_rng(2).normal(size=(4, 3, 6))
    plain = run_session(make_session(model), {"x": x.astype(np.float32)})["y"]
    assert np.abs(twin_output(model, x) - plain).max() < 1e-5


def test_constants_casts_and_subgraphs_widen_too() -> None:
    half = onnx.numpy_helper.from_array(np.array(0.5, np.float32))
    inner = helper.make_graph(
        [
            helper.make_node("Constant", [], ["half"], value=half),
            helper.make_node("Mul", ["h", "half"], ["t"]),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Cast", ["h"], ["e"], to=onnx.TensorProto.FLOAT)],
        "else",
        [],
        [helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, None)],
    )
    nodes = [
        onnx_models.batch_norm_node(y="h"),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other),
    ]
    opened = load(onnx_models.make_model(nodes, inputs=[onnx_models.flag("c")]))
    session = make_session(widen(opened, find_narrow(opened)), optimize=False)
    x = np.random.default_rng(2).normal(size=(4, 3, 6))
    whole, part = (run_session(session, {"x": x, "c": np.array(c)})["y"] for c in (False, True))
    assert whole.dtype == np.float64
    np.testing.assert_array_equal(part, whole / 2)


def test_a_nudge_moves_weights_by_their_own_rounding() -> None:
    x = np.random.default_rng(2).normal(size=(4, 3, 6))
    for dtype, unit in (("float32", 2.0**-24), ("float16", 2.0**-11)):
        model = onnx_models.single(dtype=dtype)
        plain = twin_output(model, x)
        for coherent in (False, True):
            moved = np.abs(twin_output(model, x, Nudge(0, coherent)) - plain).max()
            assert 0.1 * unit < moved < 20 * unit


def test_a_model_too_large_is_refused() -> None:
    model = load(onnx_models.single())
    value = model.graph.initializers["s"]

    class Huge:
        nbytes = LARGEST_WIDENED + 1

    value._const_value = Huge()
    with pytest.raises(ModelError, match="too large to be evaluated in float64"):
        find_narrow(model)
    assert math.log2(LARGEST_WIDENED) == 29
