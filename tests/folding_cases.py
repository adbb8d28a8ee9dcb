"""Small graphs with one batch norm, and what a float64 evaluation says of folding it.

A graph is a chain of layers from x to y. Whether its batch norm can be folded is asked of the
numbers: are there a weight and a bias with which the chain without it gives the same, for random
x? The chain is linear in them, so a least-squares solution is exact, or there is none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import plain_onnx
from onnx import helper, numpy_helper

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MAXIMA = ("MaxPool", "GlobalMaxPool", "Relu")
BATCH = 6

TYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One operator; `constants` are its inputs but the one that the chain computes."""

    op: str
    constants: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    computed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A chain of layers, and how it is written and read.

    source: where parameters come from. readers: who needs what beside the chain. clone: whether
    copies are allowed.
    """

    name: str
    layers: Sequence[Layer]
    shape: Sequence[int]
    opset: int = 18
    dtype: str = "float32"
    source: str = "initializer"
    readers: str = "one"
    clone: bool = False

    @property
    def norm_at(self) -> int:
        return next(i for i, layer in enumerate(self.layers) if layer.op == "BatchNormalization")

    @property
    def linear_at(self) -> int:
        return next(i for i, layer in enumerate(self.layers) if layer.op in LINEAR)

    @property
    def behind(self) -> bool:
        """Whether the batch norm stands behind the linear layer."""
        return self.norm_at > self.linear_at


def batch_norm(
    channels: int, seed: int = 1, *, shift: bool = True, sign: int = 0, **attributes: int
) -> Layer:
    """A batch norm; without `shift` it only scales, `sign` is that of its scales (0: both)."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 1.5, channels) * (sign or np.resize([1, -1], channels))
    bias, mean = rng.normal(size=(2, channels)) if shift else np.zeros((2, channels))
    return Layer(
        "BatchNormalization",
        {1: scale, 2: bias, 3: mean, 4: rng.uniform(0.5, 2, channels)},
        {"epsilon": 1e-3, **attributes},
    )


def array(*shape: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def build(case: Case, constants: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Write the case as a model, its floats rounded to the case's type."""
    dtype = TYPES[case.dtype]
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    overridable: list[onnx.ValueInfoProto] = []
    value = "x"
    for at, layer in enumerate(case.layers):
        count = max([layer.computed, *layer.constants]) + 1
        inputs = [""] * count
        inputs[layer.computed] = value
        for index, given in layer.constants.items():
            inputs[index] = f"{at}_{index}"
            is_float = given.dtype.kind == "f"
            content = given.astype(dtype) if is_float else given
            made, tensors = _source(
                case.source if is_float else "initializer", inputs[index], content
            )
            nodes += made
            stored += tensors
            if case.source.startswith("input") and is_float:
                overridable.append(
                    helper.make_tensor_value_info(inputs[index], kind, content.shape)
                )
            elif case.source.startswith("input"):
                overridable.append(
                    helper.make_tensor_value_info(
                        inputs[index], onnx.TensorProto.INT64, content.shape
                    )
                )
        value = "y" if at == len(case.layers) - 1 else f"v{at}"
        attributes = dict(layer.attributes)
        if case.opset < 7:
            attributes |= _old_attributes(layer, case.opset)
        nodes.append(helper.make_node(layer.op, inputs, [value], name=f"n{at}", **attributes))
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    more, also = _readers(case)
    nodes += more
    outputs += [helper.make_tensor_value_info(name, kind, None) for name in also]
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", kind, case.shape), *overridable],
        outputs,
        stored,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", case.opset)],
        ir_version=3 if case.source == "input of IR 3" else 10,
    )


def _source(
    source: str, name: str, content: np.ndarray
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    if source == "Constant":
        tensor = numpy_helper.from_array(content, name)
        return [helper.make_node("Constant", [], [name], value=tensor)], []
    if source == "Identity":
        tensor = numpy_helper.from_array(content, f"{name}_stored")
        return [helper.make_node("Identity", [tensor.name], [name])], [tensor]
    if source == "ConstantOfShape":
        # One number throughout: variances have to be positive.
        fill = numpy_helper.from_array(np.abs(content.reshape(-1)[:1]))
        shape = numpy_helper.from_array(ints(*content.shape), f"{name}_shape")
        return [helper.make_node("ConstantOfShape", [shape.name], [name], value=fill)], [shape]
    return [], [numpy_helper.from_array(content, name)]


def _old_attributes(layer: Layer, opset: int) -> dict[str, Any]:
    if layer.op == "BatchNormalization":
        return {"is_test": 1} | ({"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {})
    if layer.op in ("Add", "Mul", "Gemm"):
        return {"broadcast": 1} | ({"axis": 1} if layer.op in ("Add", "Mul") else {})
    return {}


def _readers(case: Case) -> tuple[list[onnx.NodeProto], list[str]]:
    """Who reads what the fold would change, beside the chain."""
    if case.readers == "one":
        return [], []
    between = f"v{case.norm_at - 1 if case.behind else case.norm_at}"
    if case.readers == "an output":
        return [], [between]
    read = between
    if case.readers == "a shared weight":
        read = f"{case.linear_at}_{1 - case.layers[case.linear_at].computed}"
    return [helper.make_node("Identity", [read], ["other"], name="reader")], ["other"]


def inputs(case: Case, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=case.shape).astype(TYPES[case.dtype])


# By what the numbers are: how a chain is written or read changes none of them. The cases of a
# family share their layers, which the matrix keeps alive.
_SOLVED: dict[tuple[object, ...], bool] = {}


def should_fold(case: Case) -> bool:
    """Whether the batch norm can be folded: as its readers allow, and the numbers."""
    if case.source == "input":
        return False
    if case.readers != "one":
        allowed = case.clone and (case.behind or case.readers == "a shared weight")
        if not allowed:
            return False
    same = (
        id(case.layers),
        case.shape,
        case.dtype,
        case.source == "ConstantOfShape",
        case.opset < 7,
    )
    if same not in _SOLVED:
        _SOLVED[same] = has_solution(dataclasses.replace(case, readers="one"))
    return _SOLVED[same]


def has_solution(case: Case) -> bool:
    """Whether some weight, bias and border give the same without the batch norm."""
    # A C of shape (N, M) could take up a difference that is the same in every row of one x.
    once = "Conv" in case.layers[case.linear_at].op
    xs = [inputs(case, seed) for seed in range(1 if once else 3)]
    target = _results(build(case), xs, {})
    rest = [layer for i, layer in enumerate(case.layers) if i != case.norm_at]
    linear = case.linear_at - (case.norm_at < case.linear_at)
    rest, unknown = _with_unknowns(case, rest, linear)
    pads = [i for i, layer in enumerate(rest) if _has_border(layer)]
    if pads and not case.behind:
        # The border is multiplied by the weight: try what each channel would want.
        norm = plain_onnx.evaluate(
            build(dataclasses.replace(case, layers=[case.layers[case.norm_at]])),
            np.zeros((1, *case.shape[1:])),
        )["y"]
        slope = (
            plain_onnx.evaluate(
                build(dataclasses.replace(case, layers=[case.layers[case.norm_at]])),
                np.ones((1, *case.shape[1:])),
            )["y"]
            - norm
        )
        shape = (-1, case.shape[1], math.prod(case.shape[2:]))
        old = case.layers[1 + pads[0]].constants.get(2, np.zeros(()))
        borders = (old - norm.reshape(shape)[0, :, 0]) / slope.reshape(shape)[0, :, 0]
        return any(
            _solves(case, rest, unknown, xs, target, {f"{pads[0]}_2": np.array(border)})
            for border in borders
        )
    unknown |= {f"{i}_2": () for i in pads}
    return _solves(case, rest, unknown, xs, target, {})


def _has_border(layer: Layer) -> bool:
    return layer.op == "Pad" and "mode" not in layer.attributes


def _with_unknowns(
    case: Case, rest: list[Layer], linear: int
) -> tuple[list[Layer], dict[str, tuple[int, ...]]]:
    """Give the linear layer a bias where it may have one; names and shapes of what is sought."""
    layer = rest[linear]
    side = 1 - layer.computed
    weight = layer.constants[side]
    unknown: dict[str, tuple[int, ...]] = {f"{linear}_{side}": weight.shape}
    if layer.op == "MatMul":
        width = weight.shape[-1] if side else weight.shape[-2]
        lead = (*weight.shape[:-2], 1) if weight.ndim > 2 else ()
        bias = np.zeros((*lead, width) if side else (width, 1))
        rest = [*rest[: linear + 1], Layer("Add", {1: bias}), *rest[linear + 1 :]]
        return rest, unknown | {f"{linear + 1}_1": bias.shape}
    if layer.op == "Gemm":
        width = weight.shape[0 if layer.attributes.get("transB") else 1]
        old = layer.constants.get(2)
        shape = (1, width) if old is None else np.broadcast_shapes(old.shape, (1, width))
    else:
        groups = layer.attributes.get("group", 1)
        shape = (weight.shape[1] * groups if layer.op == "ConvTranspose" else weight.shape[0],)
    constants = {**layer.constants, 2: np.zeros(shape)}
    rest = [*rest]
    rest[linear] = dataclasses.replace(layer, constants=constants)
    for i, other in enumerate(rest):
        if _has_border(other) and 2 not in other.constants:
            rest[i] = dataclasses.replace(other, constants={**other.constants, 2: np.zeros(())})
    return rest, unknown | {f"{linear}_2": shape}


def _solves(
    case: Case,
    rest: list[Layer],
    unknown: Mapping[str, tuple[int, ...]],
    xs: Sequence[np.ndarray],
    target: np.ndarray,
    known: Mapping[str, np.ndarray],
) -> bool:
    # What is sought has to be an initializer, so that a number can be put in its place.
    case = dataclasses.replace(case, source="initializer")
    without = build(dataclasses.replace(case, layers=rest))
    seek, wanted = without, target
    if case.behind and any(layer.op in MAXIMA for layer in case.layers):
        # Not linear in the weight: find it without the maximum, and try it with it.
        straight = [layer for layer in case.layers if layer.op not in MAXIMA]
        seek = build(
            dataclasses.replace(case, layers=[layer for layer in rest if layer.op not in MAXIMA])
        )
        wanted = _results(build(dataclasses.replace(case, layers=straight)), xs, {})
    zeros = {name: np.zeros(shape) for name, shape in unknown.items()} | dict(known)
    base = _results(seek, xs, zeros)
    columns = []
    for name, shape in unknown.items():
        for place in np.ndindex(*shape):
            unit = np.zeros(shape)
            unit[place] = 1.0
            columns.append(_results(seek, xs, {**zeros, name: unit}) - base)
    matrix = np.stack(columns, axis=1)
    solution = np.linalg.lstsq(matrix, wanted - base, rcond=None)[0]
    found: dict[str, np.ndarray] = dict(known)
    at = 0
    for name, shape in unknown.items():
        found[name] = solution[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    error = np.abs(_results(without, xs, found) - target).max()
    return bool(error <= 1e-9 * np.abs(target).max())


def _results(
    model: onnx.ModelProto, xs: Sequence[np.ndarray], constants: Mapping[str, np.ndarray]
) -> np.ndarray:
    return np.concatenate([plain_onnx.evaluate(model, x, constants)["y"].ravel() for x in xs])
