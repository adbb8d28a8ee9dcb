"""The shapes of a model's values, declared or inferred."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from ..nodes import without_weights
from .plan import Shape

__all__ = ["Shapes"]


class Shapes:
    """What is known of the shapes in a model when it is made; later values are looked at alone.

    Inference runs on a copy without the weights, and what it cannot tell is not known: a broken
    graph gives fewer shapes, not an error.
    """

    def __init__(self, model: ir.Model) -> None:
        # The values are held, so that an id is not used again.
        self._inferred: dict[int, tuple[ir.Value, Shape]] = {}
        try:
            light = ir.to_proto(without_weights(model))
            twin = ir.from_proto(onnx.shape_inference.infer_shapes(light))
        except Exception:  # inference and serialization raise many kinds on broken graphs
            return
        for value, other in zip(_results(model), _results(twin), strict=False):
            if value.name == other.name and (shape := _stated(other)) is not None:
                self._inferred[id(value)] = (value, shape)

    def of(self, value: ir.Value | None) -> Shape | None:
        """Return a shape, with a name or None for each dimension that is open."""
        if value is None:
            return None
        found = self._inferred.get(id(value))
        return found[1] if found is not None else _stated(value)


def _results(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph.all_nodes():
        yield from node.outputs


def _stated(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    # Some exporters write -1 where the size is open.
    return tuple(
        (dim if dim >= 0 else None) if isinstance(dim, int) else dim.value for dim in value.shape
    )
