"""Follow a value back to what it holds, through the operators that only copy or reshape it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .files import ModelError

__all__ = ["OVERRIDABLE_SINCE", "Constant", "resolve"]

OVERRIDABLE_SINCE = 4
"""The IR version from which on the caller may feed an initializer that is a graph input too. Before
it every initializer had to be one, and onnxruntime takes them as constants."""

# Beyond this an array is named but not made: a few bytes of a file can declare terabytes.
_LARGEST_ARRAY = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """What a value holds and where it comes from.

    Attributes
    ----------
    source : str
        Where from, in words: ``"initializer"``, ``"initializer, also a graph input"``,
        ``"Constant"``, ``"ConstantOfShape"``, ``"Cast of initializer"``, ``"graph input"`` (an
        input of the graph, subgraph or function that holds it), ``"computed by Conv"``,
        ``"missing"``.
    array : numpy.ndarray or None
        The content, read-only and of the value's own type, or None when it is not constant.
    value : onnx_ir.Value or None
        The value at the start of the chain: two inputs share their storage when it is the same.
    """

    source: str
    array: np.ndarray | None
    value: ir.Value | None = None

    @property
    def known(self) -> bool:
        """Whether the content is known."""
        return self.array is not None

    @property
    def overridable(self) -> bool:
        """Whether the caller of the model may feed something else in its place."""
        return self.value is not None and self.known and self.value.is_graph_input()


def resolve(value: ir.Value | None) -> Constant:
    """Find the content of a value, if the model fixes it.

    Sees through Identity, Cast, Squeeze, Unsqueeze, Reshape and Flatten, to an initializer (also
    one that is a graph input too, as in files of IR version 3), a Constant or a ConstantOfShape.

    Raises
    ------
    ModelError
        When a stored tensor cannot be read: its data does not fit its shape, or its file is gone.
    """
    chain: list[ir.Node] = []
    seen: set[int] = set()
    while value is not None and id(value) not in seen:
        seen.add(id(value))
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in _STEPS or not node.inputs:
            break
        chain.append(node)
        value = node.inputs[0]
    root = _root(value)
    array, source = root.array, root.source
    for node in reversed(chain):
        source = f"{node.op_type} of {source}"
        if array is not None:
            array = _apply(node, array)
    if array is not None:
        array = array.view()
        array.flags.writeable = False
    return Constant(source, array, root.value)


def _root(value: ir.Value | None) -> Constant:
    if value is None:
        return Constant("missing", None)
    node = value.producer()
    if node is None:
        if value.is_initializer() and value.const_value is not None:
            also = ", also a graph input" if value.is_graph_input() else ""
            return Constant(f"initializer{also}", _read(value.const_value, value), value)
        return Constant("graph input" if value.is_graph_input() else "unknown", None, value)
    if node.domain == "" and node.op_type == "Constant":
        return Constant("Constant", _constant(node), value)
    if node.domain == "" and node.op_type == "ConstantOfShape":
        return Constant("ConstantOfShape", _constant_of_shape(node), value)
    return Constant(f"computed by {node.op_type}", None, value)


def _read(tensor: ir.TensorProtocol, value: ir.Value) -> np.ndarray:
    try:
        return np.asarray(tensor.numpy())
    except Exception as error:  # a broken tensor raises whatever its storage raises
        raise ModelError(
            f"tensor {value.name!r} of type {tensor.dtype} and shape {list(tensor.shape)} "
            f"cannot be read: {error}"
        ) from error


def _constant(node: ir.Node) -> np.ndarray | None:
    for name, kind in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        attribute = node.attributes.get(name)
        if attribute is not None and not attribute.is_ref():
            return np.asarray(attribute.value, dtype=kind)
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref():
        return None
    return _read(attribute.as_tensor(), node.outputs[0])


def _stored(node: ir.Node, index: int) -> np.ndarray | None:
    """Content of an input that sets a shape: stored directly, so that no cycle can be followed."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or (producer := value.producer()) is None:
        return _root(value).array
    is_constant = producer.domain == "" and producer.op_type == "Constant"
    return _constant(producer) if is_constant else None


def _constant_of_shape(node: ir.Node) -> np.ndarray | None:
    shape = _stored(node, 0)
    attribute = node.attributes.get("value")
    if shape is None or (attribute is not None and attribute.is_ref()):
        return None
    fill = np.zeros((), np.float32)
    if attribute is not None:
        fill = _read(attribute.as_tensor(), node.outputs[0]).reshape(-1)[0]
    dims = [int(dim) for dim in shape.ravel()]
    if any(dim < 0 for dim in dims) or len(dims) > 32 or math.prod(dims) > _LARGEST_ARRAY:
        return None
    return np.broadcast_to(fill, dims)  # one element in memory, whatever the shape


def _apply(node: ir.Node, array: np.ndarray) -> np.ndarray | None:
    # A function's caller may set its attributes: then nothing is fixed here.
    if array.nbytes > _LARGEST_ARRAY or any(a.is_ref() for a in node.attributes.values()):
        return None
    try:
        return _STEPS[node.op_type](node, array)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelError(
            f"{node.op_type} {node.name or node.outputs[0].name!r} does not fit its constant input "
            f"of shape {list(array.shape)}: {error}"
        ) from error


def _identity(node: ir.Node, array: np.ndarray) -> np.ndarray:
    return array


def _cast(node: ir.Node, array: np.ndarray) -> np.ndarray:
    return array.astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Axes are an attribute before opset 13 and the second input from then on."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return tuple(attribute.as_ints())
    axes = _stored(node, 1)
    return None if axes is None else tuple(int(axis) for axis in axes.ravel())


def _squeeze(node: ir.Node, array: np.ndarray) -> np.ndarray | None:
    axes = _axes(node)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return None
    return np.squeeze(array, axis=axes)


def _unsqueeze(node: ir.Node, array: np.ndarray) -> np.ndarray | None:
    axes = _axes(node)
    return None if axes is None else np.expand_dims(array, axis=axes)


def _reshape(node: ir.Node, array: np.ndarray) -> np.ndarray | None:
    attribute = node.attributes.get("shape")  # opset 1 to 4
    target = _stored(node, 1) if attribute is None else np.asarray(attribute.as_ints())
    if target is None:
        return None
    dims = [int(dim) for dim in target.ravel()]
    if not node.attributes.get_int("allowzero", 0):
        dims = [array.shape[i] if dim == 0 else dim for i, dim in enumerate(dims)]
    return array.reshape(dims)


def _flatten(node: ir.Node, array: np.ndarray) -> np.ndarray:
    axis = node.attributes.get_int("axis", 1)
    axis = axis + array.ndim if axis < 0 else axis
    return array.reshape(math.prod(array.shape[:axis]), -1)


_STEPS: dict[str, Callable[[ir.Node, np.ndarray], np.ndarray | None]] = {
    "Identity": _identity,
    "Cast": _cast,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
}
