"""Find every BatchNormalization node of a model and read what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from . import opsets
from .constants import Constant, resolve
from .files import ModelError, ModelLike, load

__all__ = ["BatchNormNode", "find_nodes", "without_weights"]

# Larger initializers are hidden from shape inference: shapes and axes are always smaller.
_SMALL_TENSOR = 1024

# A few bytes of a file can declare any number of channels; all that is done with them takes memory.
_MOST_NUMBERS = 2**24

Shape = tuple[int | str | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class BatchNormNode:
    """One BatchNormalization node, in the terms of ONNX.

    Attributes
    ----------
    name : str
        Unique in the model and the same on every reading: the node's own name, else its first
        output's, else ``BatchNormalization_<index>``; nested nodes carry their `path` before it.
    node : onnx_ir.Node
        The node in the model that was searched.
    path : tuple of str
        Where it is: empty in the main graph, else a step for each subgraph (``"If_3.then_branch"``)
        or model-local function (``"function Block"``).
    opset : int
        The opset in force where the node stands.
    version : OperatorVersion
        The version of the operator that this opset means.
    mode : {"eval", "training"}
        Whether it normalizes with stored or with the batch's statistics.
    eps : float
        The value that runtimes use: ONNX keeps it as float32.
    momentum : float
        ONNX's: the weight of the *old* running value, 1 - torch's.
    spatial : bool
        False for statistics per activation (spatial=0, opset 1 to 8).
    scale, bias, mean, var : Constant
        The parameters, as far as the model fixes them.
    input_shape : tuple of int, str or None, or None
        X's shape, declared or inferred; names for symbolic dimensions.
    dtype : onnx_ir.DataType or None
        X's type, when known.
    by_reference : tuple of str
        Attributes that the caller of the function sets; their defaults stand in above.
    """

    name: str
    node: ir.Node
    path: tuple[str, ...]
    opset: int
    version: opsets.OperatorVersion
    mode: opsets.Mode
    eps: float
    momentum: float
    spatial: bool
    scale: Constant
    bias: Constant
    mean: Constant
    var: Constant
    input_shape: Shape | None
    dtype: ir.DataType | None
    by_reference: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, Constant]:
        """The four parameters by ONNX's names for them."""
        return {"scale": self.scale, "bias": self.bias, "mean": self.mean, "var": self.var}

    @property
    def rank(self) -> int | None:
        """Number of dimensions of X, when known."""
        return None if self.input_shape is None else len(self.input_shape)

    @property
    def bad_channels(self) -> np.ndarray:
        """Where var + epsilon is 0 or less, of var's shape; empty when var is not known."""
        var = self.var.array
        if var is None:
            return np.zeros(0, bool)
        with np.errstate(invalid="ignore"):  # NaN is another fault
            return np.asarray(var.astype(np.float64) + self.eps <= 0)

    @property
    def untouched(self) -> bool:
        """Whether the stored statistics are known, and 0 and 1 as before any training."""
        mean, var = self.mean.array, self.var.array
        return mean is not None and var is not None and not mean.any() and bool((var == 1).all())

    @property
    def num_features(self) -> int | None:
        """Number of channels, from the parameters or X's second dimension, when known."""
        for constant in self.parameters.values():
            if constant.array is not None and constant.array.ndim > 0:
                return int(constant.array.shape[0])
        for value in self.node.inputs[1:5]:
            shape = None if value is None else _shape_of(value)
            if shape and isinstance(shape[0], int):
                return shape[0]
        if self.input_shape is not None and len(self.input_shape) > 1:
            channels = self.input_shape[1]
            return channels if isinstance(channels, int) else None
        return None


def find_nodes(model: ModelLike) -> list[BatchNormNode]:
    """Find the BatchNormalization nodes of a model, in subgraphs and model-local functions too.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.

    Returns
    -------
    list of BatchNormNode
        In graph order, the main graph first, then the functions. Empty when there are none.

    Raises
    ------
    ModelError
        When the model cannot be read, or imports no ONNX opset, or a node declares an absurd
        number of channels.
    """
    opened = load(model)
    places = list(_walk(opened))
    shapes: dict[int, tuple[Shape | None, ir.DataType | None]] = {}
    if any(x is not None and x.shape is None for place in places for x in place.node.inputs[:1]):
        shapes = _inferred(opened)
    found: list[BatchNormNode] = []
    taken: set[str] = set()
    for index, place in enumerate(places):
        name = _unique("/".join((*place.path, _own_name(place.node, index))), taken)
        found.append(_read_node(place, name, shapes.get(index, (None, None))))
    return found


@dataclasses.dataclass(frozen=True)
class _Place:
    node: ir.Node
    path: tuple[str, ...]
    opset: int | None
    defaults: Mapping[str, ir.Attr]


def _walk(model: ir.Model) -> Iterator[_Place]:
    yield from _walk_graph(model.graph, (), model.graph.opset_imports, {})
    for function in model.functions.values():
        path = (f"function {function.name}",)
        yield from _walk_graph(function, path, function.opset_imports, function.attributes)


def _walk_graph(
    graph: ir.Graph | ir.Function,
    path: tuple[str, ...],
    imports: Mapping[str, int],
    defaults: Mapping[str, ir.Attr],
) -> Iterator[_Place]:
    for node in graph:
        if node.op_type == "BatchNormalization" and node.domain == "":
            # "" and "ai.onnx" are two spellings of the default domain.
            opset = node.version or imports.get("") or imports.get("ai.onnx")
            yield _Place(node, path, opset, defaults)
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            step = f"{node.name or node.op_type}.{attribute.name}"
            if attribute.type is ir.AttributeType.GRAPH:
                yield from _walk_graph(attribute.as_graph(), (*path, step), imports, defaults)
            elif attribute.type is ir.AttributeType.GRAPHS:
                for i, subgraph in enumerate(attribute.as_graphs()):
                    yield from _walk_graph(subgraph, (*path, f"{step}[{i}]"), imports, defaults)


def _read_node(
    place: _Place, name: str, inferred: tuple[Shape | None, ir.DataType | None]
) -> BatchNormNode:
    node = place.node
    if place.opset is None:
        raise ModelError(f"BatchNormalization {name!r}: its graph imports no ONNX opset")
    if not node.inputs or node.inputs[0] is None or not node.outputs:
        raise ModelError(f"BatchNormalization {name!r} has no input or no output")
    version = opsets.version_at(place.opset)
    read = _Attributes(node, place.defaults)
    # An optional output that is left out has an empty name.
    used = sum(1 for output in node.outputs if output.name)
    scale, bias, mean, var = (resolve(value) for value in [*node.inputs[1:5], *[None] * 4][:4])
    for constant in (scale, bias, mean, var):
        if constant.array is not None and constant.array.size > _MOST_NUMBERS:
            raise ModelError(
                f"BatchNormalization {name!r} has a parameter of shape "
                f"{list(constant.array.shape)}, expected at most {_MOST_NUMBERS} numbers"
            )
    declared = _shape_of(node.inputs[0])
    return BatchNormNode(
        name=name,
        node=node,
        path=place.path,
        opset=place.opset,
        version=version,
        mode=opsets.mode_of(
            version,
            is_test=read.integer("is_test", 0),
            training_mode=read.integer("training_mode", 0),
            outputs=used,
        ),
        eps=read.number("epsilon", opsets.DEFAULT_EPSILON),
        momentum=read.number("momentum", opsets.DEFAULT_MOMENTUM),
        spatial=not version.spatial or bool(read.integer("spatial", 1)),
        scale=scale,
        bias=bias,
        mean=mean,
        var=var,
        input_shape=inferred[0] if declared is None else declared,
        dtype=node.inputs[0].dtype or inferred[1],
        by_reference=tuple(read.by_reference),
    )


class _Attributes:
    """A node's attributes, with the operator's defaults for those left out."""

    def __init__(self, node: ir.Node, defaults: Mapping[str, ir.Attr]) -> None:
        self._node = node
        self._defaults = defaults
        self.by_reference: list[str] = []

    def _value(self, name: str, kind: ir.AttributeType, default: float) -> Any:
        attribute = self._node.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            self.by_reference.append(name)
            attribute = self._defaults.get(attribute.ref_attr_name or "")
        if attribute is None or attribute.value is None:
            return default
        if attribute.type is not kind:
            raise ModelError(
                f"BatchNormalization {self._node.name!r}: expected attribute {name} of type "
                f"{kind.name}, got {attribute.type.name}"
            )
        return attribute.value

    def integer(self, name: str, default: int) -> int:
        return int(self._value(name, ir.AttributeType.INT, default))

    def number(self, name: str, default: float) -> float:
        return float(np.float32(self._value(name, ir.AttributeType.FLOAT, default)))


def _own_name(node: ir.Node, index: int) -> str:
    own = node.name or (node.outputs and node.outputs[0].name) or f"BatchNormalization_{index}"
    return str(own)  # a name that is no UTF-8 comes as bytes


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}#{count}"
    taken.add(candidate)
    return candidate


def _shape_of(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    # Some exporters write -1 where the size is open.
    return tuple(
        (dim if dim >= 0 else None) if isinstance(dim, int) else dim.value for dim in value.shape
    )


def _inferred(model: ir.Model) -> dict[int, tuple[Shape | None, ir.DataType | None]]:
    """Shapes and types that inference finds for X, by the node's place in the walk.

    Works on a copy, and gives nothing rather than an error: a node is readable without them.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(without_weights(model)))
        twin = ir.from_proto(proto)
    except Exception:  # inference and serialization raise many kinds on broken graphs
        return {}
    inputs = [place.node.inputs[0] for place in _walk(twin)]
    return {i: (_shape_of(x), x.dtype) for i, x in enumerate(inputs) if x is not None}


def without_weights(model: ir.Model) -> ir.Model:
    """Copy a model with its large initializers turned into inputs: inference copies the rest."""
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL_TENSOR:
            continue
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        light.graph.initializers.pop(name)
        value.const_value = None
        if not value.is_graph_input():
            light.graph.inputs.append(value)
    return light
