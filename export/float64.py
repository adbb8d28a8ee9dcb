"""A twin of a model that computes in float64: what a proof holds the model against.

onnxruntime has float64 kernels for some operators alone. Convolution gets one here, from slices
and matrix products; BatchNormalization is spelled out by its definition, which also keeps clear of
what onnxruntime's training kernel does to initializers (onnxruntime#29790). Any other operator
without such a kernel runs in float32 between casts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from .constants import resolve
from .convolution64 import spell_convolution
from .files import ModelError
from .nodes import BatchNormNode, find_nodes
from .sessions import make_session
from .surgery import Names, Patch, inline_functions, opset_of

__all__ = ["LARGEST_WIDENED", "Nudge", "find_narrow", "unit_roundoff", "widen"]

LARGEST_WIDENED = 2**29
"""Bytes of weights beyond which no twin is made: it holds them again, twice as wide."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

# Their constant inputs are weights; those of others may be sizes, bounds or exponents.
_WEIGHTED = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "BatchNormalization",
        "InstanceNormalization",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "PRelu",
        "Sum",
    ]
)

# Known to have no float64 kernel on the CPU; others are found when the twin is loaded.
_NARROW = frozenset(
    [
        "AveragePool",
        "ConvTranspose",
        "Elu",
        "Erf",
        "Gelu",
        "HardSwish",
        "LRN",
        "LeakyRelu",
        "Resize",
    ]
)

_MISSING = re.compile(
    r"implementation for (?:[\w.]+:)?(\w+)\(\d+\)|of operator \((\w+)\)|Optype \((\w+)\)"
)

# Operators whose result has a type that an attribute names.
_TYPED = frozenset({"Cast", "EyeLike", "Constant", "ConstantOfShape"})


@dataclasses.dataclass(frozen=True)
class Nudge:
    """Moves each weight by up to the rounding of its type: the size that rounding may have.

    Attributes
    ----------
    seed : int
        Of the signs.
    coherent : bool
        One sign for a whole tensor, else one for each number.
    """

    seed: int
    coherent: bool

    def apply(
        self, array: np.ndarray, unit: float, index: int, smallest: float = 0.0
    ) -> np.ndarray:
        """Move a float64 array by `unit` of each number, or by half of the type's `smallest`.

        That is the type's rounding of numbers too small for its full precision. `index` sets
        tensors apart; 0 stays 0.
        """
        generator = np.random.default_rng([self.seed, index])
        shape = () if self.coherent else array.shape
        signs = generator.integers(0, 2, shape) * 2 - 1
        size = np.where(array == 0, 0.0, np.maximum(unit * np.abs(array), smallest / 2))
        return np.asarray(array + size * signs)


def unit_roundoff(dtype: ir.DataType) -> float:
    """Return half the distance from 1 to the next number of a floating-point type."""
    bits = {ir.DataType.FLOAT16: 11, ir.DataType.BFLOAT16: 8, ir.DataType.DOUBLE: 53}
    return 2.0 ** -bits.get(dtype, 24)


def find_narrow(model: ir.Model) -> frozenset[str]:
    """Find the operators of a model that its twin has to run in float32.

    Raises
    ------
    ModelError
        When the model is too large, or onnxruntime has no way to run a twin of it.
    """
    stored = [v.const_value for g in model.graphs() for v in g.initializers.values()]
    if sum(tensor.nbytes for tensor in stored if tensor is not None) > LARGEST_WIDENED:
        raise ModelError("the model is too large to be evaluated in float64")
    narrow = set(_NARROW)
    while True:
        try:
            make_session(widen(model, narrow), "cpu", optimize=False)
        except ModelError as error:
            named = ["".join(groups) for groups in _MISSING.findall(str(error))]
            if not named or named[0] in narrow:
                raise ModelError(f"it cannot be evaluated in float64: {error}") from error
            narrow.add(named[0])
        else:
            return frozenset(narrow)


def widen(
    model: ir.Model, narrow: Collection[str] = _NARROW, nudge: Nudge | None = None
) -> ir.Model:
    """Make the twin of a model, whose values have the same names.

    Inputs and outputs of a 32- or 16-bit floating-point type become float64 too.

    Parameters
    ----------
    model : onnx_ir.Model
        The model; it is not changed.
    narrow : collection of str
        Operators that stay in float32: see ``find_narrow``.
    nudge : Nudge, optional
        Moves the weights, to see what their rounding may do.
    """
    inlined = inline_functions(model)
    twin = inlined.clone() if inlined is model else inlined
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(twin)
    _Widening(twin, narrow, nudge).run()
    return twin


class _Widening:
    def __init__(self, model: ir.Model, narrow: Collection[str], nudge: Nudge | None) -> None:
        self.model = model
        self.narrow = narrow
        self.nudge = nudge
        self.opset = opset_of(model)
        self.names = Names(model)
        # Whose type nobody knows counts as a float: nearly everything in a network is one.
        self.floats = {v.name for v in self._values() if v.dtype in (*_FLOATS, None)}

    def run(self) -> None:
        norms = find_nodes(self.model)
        nodes = [node for graph in self.model.graphs() for node in graph]
        if self.nudge is not None:
            self._move_weights(nodes, self.nudge)
        self._widen_constants(nodes)
        spelled = {id(norm.node): norm for norm in norms}
        for node in nodes:
            if id(node) in spelled:
                self._spell_out(spelled[id(node)])
            elif node.domain == "" and node.op_type == "Conv" and self._convolve(node):
                continue
            elif self._needs_casts(node):
                self._between_casts(node)
        for value in self._values():
            if value.dtype in _FLOATS and value.producer() is None:
                value.type = _double()
            elif value.dtype in _FLOATS:
                value.type = value.shape = None  # onnxruntime infers both anew
        graph = self.model.graph
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                graph.initializers.pop(name)
        # Before, every initializer would have to be a graph input too.
        self.model.ir_version = max(self.model.ir_version, 4)

    def _values(self) -> Iterator[ir.Value]:
        for graph in self.model.graphs():
            yield from graph.inputs
            yield from graph.initializers.values()
            for node in graph:
                yield from node.outputs

    def _move_weights(self, nodes: list[ir.Node], nudge: Nudge) -> None:
        moved: dict[int, ir.Value] = {}
        for node in nodes:
            if node.domain != "" or node.op_type not in _WEIGHTED:
                continue
            for i, value in enumerate(node.inputs):
                if value is None:
                    continue
                if id(value) not in moved:
                    array = resolve(value).array
                    if array is None or array.dtype.kind not in "fV":
                        continue
                    unit = unit_roundoff(ir.DataType.from_numpy(array.dtype))
                    # ml_dtypes has no type hints for it
                    limits = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]
                    smallest = float(limits.smallest_subnormal)
                    wide = nudge.apply(array.astype(np.float64), unit, len(moved), smallest)
                    moved[id(value)] = self._store(wide, f"{value.name}/moved")
                    self.floats.add(moved[id(value)].name)
                node.replace_input_with(i, moved[id(value)])

    def _store(self, array: np.ndarray, name: str) -> ir.Value:
        tensor = ir.tensor(array, name=self.names.new(name))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self.model.graph.register_initializer(value)
        return value

    def _widen_constants(self, nodes: list[ir.Node]) -> None:
        for graph in self.model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype not in _FLOATS:
                    continue
                value.const_value = _wide(tensor)
                value.type = _double()
        for node in nodes:
            if node.domain == "" and node.op_type in _TYPED:
                _widen_attributes(node)

    def _spell_out(self, norm: BatchNormNode) -> None:
        """y = (x - mean) / sqrt(var + eps) * scale + bias, and the running statistics.

        Source: ONNX BatchNormalization, opset 1 to 15, of which each has the same formulas.
        """
        node = norm.node
        if norm.rank is None:
            raise ModelError(f"the rank of the input of {norm.name!r} is not known")
        patch = Patch(node, self.names)
        x, *parameters = node.inputs
        # Statistics per activation have the shape of a sample, which meets x's as it is.
        column = [-1, *[1] * (norm.rank - 2)] if norm.spatial else None
        scale, bias, mean, var = (self._beside(patch, value, column) for value in parameters)
        used = {}
        if norm.mode == "training":
            axes = [0, *range(2, norm.rank)] if norm.spatial else [0]
            old = mean, var
            mean = self._mean(patch, x, axes)
            centered = patch.op("Sub", [x, mean])
            var = self._mean(patch, patch.op("Mul", [centered, centered]), axes)
            for i, (kept, new) in enumerate(zip(old, (mean, var), strict=True), 1):
                if len(node.outputs) > i and node.outputs[i].name:
                    used[i] = self._blend(patch, norm, kept, new)
            for i, new in ((3, mean), (4, var)):
                if len(node.outputs) > i and node.outputs[i].name:
                    used[i] = self._flat(patch, new)
        else:
            centered = patch.op("Sub", [x, mean])
        eps = patch.constant(np.asarray(norm.eps), "eps")
        deviation = patch.op("Sqrt", [patch.op("Add", [var, eps])])
        scaled = patch.op("Mul", [patch.op("Div", [centered, deviation]), scale])
        y = patch.op("Add", [scaled, bias])
        patch.replace([y, *(used.get(i) for i in range(1, len(node.outputs)))])

    def _beside(self, patch: Patch, value: ir.Value | None, column: list[int] | None) -> ir.Value:
        if value is None:
            raise ModelError("a BatchNormalization node lacks a parameter")
        wide = patch.op("Cast", [value], {"to": ir.DataType.DOUBLE.value})
        if column is None:
            return wide
        return patch.op("Reshape", [wide, patch.constant(np.array(column), "shape")])

    def _mean(self, patch: Patch, x: ir.Value | None, axes: list[int]) -> ir.Value:
        if self.opset < 18:
            return patch.op("ReduceMean", [x], {"axes": axes, "keepdims": 1})
        return patch.op("ReduceMean", [x, patch.constant(np.array(axes), "axes")], {"keepdims": 1})

    def _blend(self, patch: Patch, norm: BatchNormNode, old: ir.Value, new: ir.Value) -> ir.Value:
        keep = patch.constant(np.asarray(norm.momentum), "momentum")
        rest = patch.constant(np.asarray(1 - norm.momentum), "rest")
        blended = patch.op("Add", [patch.op("Mul", [old, keep]), patch.op("Mul", [new, rest])])
        return self._flat(patch, blended)

    def _flat(self, patch: Patch, value: ir.Value) -> ir.Value:
        return patch.op("Reshape", [value, patch.constant(np.array([-1]), "flat")])

    def _convolve(self, node: ir.Node) -> bool:
        return spell_convolution(node, self.names, self.opset)

    def _needs_casts(self, node: ir.Node) -> bool:
        if node.op_type in self.narrow:
            return True
        if node.domain != "":
            return True
        if not onnx.defs.has(node.op_type, self.opset, ""):
            return False
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        for formal, value in zip(schema.inputs, node.inputs, strict=False):
            types = allowed.get(formal.type_str, [formal.type_str])
            is_float = value is not None and value.name in self.floats
            if is_float and "tensor(float)" in types and "tensor(double)" not in types:
                return True
        return False

    def _between_casts(self, node: ir.Node) -> None:
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            return
        for i, value in enumerate(node.inputs):
            if value is not None and value.name in self.floats:
                graph.insert_before(node, cast := self._cast(value, ir.DataType.FLOAT))
                node.replace_input_with(i, cast.outputs[0])
        for value in node.outputs:
            if value.name and value.name in self.floats:
                name = value.name
                cast = self._cast(value, ir.DataType.DOUBLE)
                wide = cast.outputs[0]
                value.replace_all_uses_with(wide, replace_graph_outputs=True)
                cast.replace_input_with(0, value)
                value.name, wide.name = self.names.new(f"{name}/narrow"), name
                graph.insert_after(node, cast)

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Node:
        name = self.names.new(f"{value.name}/Cast")
        node = ir.node("Cast", [value], {"to": to.value}, name=name)
        node.outputs[0].name = name
        return node


def _double() -> ir.TensorType:
    # A new one: clones share the type objects of the values that they are made from.
    return ir.TensorType(ir.DataType.DOUBLE)


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.asarray(tensor.numpy().astype(np.float64)), name=tensor.name)


def _widen_attributes(node: ir.Node) -> None:
    attributes = node.attributes
    if node.op_type in ("Cast", "EyeLike"):
        name = "to" if node.op_type == "Cast" else "dtype"
        if attributes.get_int(name, ir.DataType.FLOAT.value) in _FLOATS:
            attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE.value)
        return
    if node.op_type == "ConstantOfShape" and "value" not in attributes:
        attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1)))
    for name in ("value_float", "value_floats"):
        if name in attributes:
            array = np.asarray(attributes.pop(name).value, np.float32).astype(np.float64)
            attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
    given = attributes.get("value")
    if given is not None and given.as_tensor().dtype in _FLOATS:
        attributes["value"] = ir.AttrTensor("value", _wide(given.as_tensor()))
