"""Read a model's constants in float64 and put folded ones in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..constants import OVERRIDABLE_SINCE, resolve
from ..rewrite import drop_unused
from ..surgery import Names, store_constant
from .reasons import Refusal

__all__ = ["Weight", "Weights"]

_TYPES = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
)

# Values in a weight beyond which nothing is folded: float64 takes eight bytes for each.
_LARGEST = 2**27


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A constant of the model.

    Attributes
    ----------
    exact : callable
        Makes the content as float64, before any rounding that folding did to it.
    dtype : numpy.dtype
        The type that the model stores.
    """

    exact: Callable[[], np.ndarray]
    dtype: np.dtype


class Weights:
    """The constants of one model while it is being folded.

    Parameters
    ----------
    model : onnx_ir.Model
        The model that is changed.
    fix_inputs : bool
        Whether initializers that are graph inputs too count as constants.
    """

    def __init__(self, model: ir.Model, *, fix_inputs: bool) -> None:
        self.names = Names(model)
        self._fix_inputs = fix_inputs
        self._may_override = model.ir_version >= OVERRIDABLE_SINCE
        self._functions = {id(function.graph) for function in model.functions.values()}
        # What folding has replaced, unrounded: each weight is rounded once however often it is
        # folded. The value is held so that its id is not used again.
        self._unrounded: dict[int, tuple[ir.Value, Callable[[], np.ndarray]]] = {}

    def read(self, value: ir.Value | None, what: str) -> Weight:
        """Read a constant; `what` names it in the reason of a refusal.

        Raises
        ------
        Refusal
            When it is not constant, not of a floating-point type of 16 bits or more, or holds NaN
            or infinity.
        """
        constant = resolve(value)
        array = constant.array
        if array is None:
            found = "not there" if constant.source == "missing" else constant.source
            raise Refusal(f"{what} is no constant: {found}")
        if constant.overridable and self._may_override and not self._fix_inputs:
            raise Refusal(
                f"{what} is a graph input with a default, so the caller may feed another "
                "(fix_inputs takes the default)"
            )
        dtype = ir.DataType.from_numpy(array.dtype)
        if dtype not in _TYPES:
            raise Refusal(f"{what} is of type {dtype.name}, not a floating-point type")
        if array.size > _LARGEST:
            raise Refusal(
                f"{what} has {array.size} values, more than the {_LARGEST} folded at once"
            )
        # Over a broadcast array of one element this looks at that element alone.
        seen = array[tuple(slice(0, 1 if step == 0 else None) for step in array.strides)]
        with np.errstate(invalid="ignore"):
            seen = seen.astype(np.float64)
        if not np.isfinite(seen).all():
            raise Refusal(f"{'NaN' if np.isnan(seen).any() else 'infinity'} in {what}")
        if value is not None and id(value) in self._unrounded:
            return Weight(self._unrounded[id(value)][1], array.dtype)
        return Weight(lambda: array.astype(np.float64), array.dtype)

    def sharers(self, node: ir.Node, index: int) -> list[ir.Node]:
        """Return the other nodes that read what an input of a node reads, through copies of it."""
        value: ir.Value | None = node.inputs[index]
        root = resolve(value).value
        reader, others = node, []
        while value is not None:
            others += [user for user, _ in value.uses() if user is not reader]
            producer = value.producer()
            if value is root or producer is None:
                break
            reader, value = producer, producer.inputs[0]
        return others

    def put(
        self,
        node: ir.Node,
        index: int,
        stored: np.ndarray,
        exact: Callable[[], np.ndarray],
        role: str,
    ) -> None:
        """Make `stored` an input of a node, in place of what it reads there now."""
        old = node.inputs[index] if index < len(node.inputs) else None
        tensor = ir.tensor(np.ascontiguousarray(stored))
        if old is not None and self._is_own(old):
            tensor.name = old.name
            old.const_value = tensor
            old.shape, old.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            self._unrounded[id(old)] = (old, exact)
            return
        value = self.constant(node, tensor, role)
        self._unrounded[id(value)] = (value, exact)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        self.discard([old])

    def constant(self, node: ir.Node, tensor: ir.TensorProtocol, role: str) -> ir.Value:
        """Store a tensor where a node can read it."""
        graph = node.graph
        assert graph is not None, "a node of a model is in a graph"
        name = self.names.new(f"{node.name or node.outputs[0].name}/{role}")
        if id(graph) in self._functions:  # which has no initializers
            tensor.name = name
            maker = ir.node("Constant", [], {"value": tensor}, name=self.names.new(f"{name}/node"))
            maker.outputs[0].name = name
            maker.outputs[0].shape = ir.Shape(tensor.shape.numpy())
            maker.outputs[0].dtype = tensor.dtype
            graph.insert_before(node, maker)
            return maker.outputs[0]
        return store_constant(graph, tensor, name)

    def discard(self, values: list[ir.Value | None]) -> None:
        """Remove what nothing reads any more, graph inputs whose default was folded too."""
        roots = [resolve(value).value for value in values if value is not None]
        drop_unused(values)
        for root in roots:
            if root is None or root.uses() or not (root.is_initializer() and root.is_graph_input()):
                continue
            graph = root.graph
            if self._may_override and graph is not None:
                graph.inputs.remove(root)
                graph.initializers.pop(str(root.name), None)

    def _is_own(self, value: ir.Value) -> bool:
        """Whether a value is an initializer that one node alone reads, and no caller feeds."""
        return (
            value.is_initializer()
            and len(value.uses()) == 1
            and not value.is_graph_output()
            and not (value.is_graph_input() and self._may_override)
        )
