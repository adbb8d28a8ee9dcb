"""Bring a model of an opset below 7, which no onnxruntime runs, up to opset 7.

onnx's version converter does it, with two obstacles taken out of its way: it has no shape
inference for old BatchNormalization nodes, so those wait outside, and it refuses sizes that are
not fixed, so those are given numbers meanwhile.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir

from . import opsets
from .files import ModelError
from .inputs import RANDOM_BATCH, RANDOM_SIZE
from .nodes import BatchNormNode, find_nodes
from .surgery import Names, Patch, is_used, opset_of

__all__ = ["lift", "needs_lift"]


def needs_lift(model: ir.Model) -> bool:
    """Whether a model is of an opset that onnxruntime does not run."""
    return opset_of(model) < opsets.OLDEST_BUILT


def lift(model: ir.Model) -> ir.Model:
    """Convert a model to opset 7.

    Parameters
    ----------
    model : onnx_ir.Model
        The model; it is not changed.

    Returns
    -------
    onnx_ir.Model
        Its BatchNormalization nodes have the names that they had, in ``find_nodes``' order.

    Raises
    ------
    ModelError
        When the converter refuses the model, or a BatchNormalization node is inside a subgraph or
        has parameters that are not constant.
    """
    waiting = model.clone()
    ir.external_data.load_to_model(waiting)
    names = Names(waiting)
    norms = find_nodes(waiting)
    for norm in norms:
        unknown = [name for name, constant in norm.parameters.items() if not constant.known]
        if norm.path or unknown:
            why = "is inside a subgraph" if norm.path else f"has no constant {unknown[0]}"
            raise ModelError(f"opset {norm.opset} cannot be lifted: {norm.name!r} {why}")
    places = [_take_out(norm, names) for norm in norms]
    dims = [value.shape for value in (*waiting.graph.inputs, *waiting.graph.outputs)]
    for value in waiting.graph.inputs:
        value.shape = _fixed(value.shape)
    for value in waiting.graph.outputs:
        value.shape = None
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(waiting), opsets.OLDEST_BUILT)
        lifted = ir.from_proto(proto)
    except Exception as error:  # the converter raises RuntimeError, and what onnx-ir does
        reason = " ".join(str(error).split())
        raise ModelError(
            f"onnx's version converter cannot lift the model from opset {opset_of(model)} to "
            f"{opsets.OLDEST_BUILT}: {reason}"
        ) from error
    for value, shape in zip((*lifted.graph.inputs, *lifted.graph.outputs), dims, strict=True):
        value.shape = shape
    _put_back(lifted, norms, places)
    return lifted


def _take_out(norm: BatchNormNode, names: Names) -> list[str]:
    """Leave copies of its inputs in place of what a node makes, and say what they are called."""
    patch = Patch(norm.node, names)
    x, _, _, mean, var = norm.node.inputs
    sources = (x, mean, var, mean, var)
    used = [is_used(value) or index == 0 for index, value in enumerate(norm.node.outputs)]
    made = [
        patch.op("Identity", [source]) if keep else None
        for source, keep in zip(sources, used, strict=False)
    ]
    patch.replace(made)
    return ["" if value is None or value.name is None else value.name for value in made]


def _put_back(model: ir.Model, norms: list[BatchNormNode], places: list[list[str]]) -> None:
    names = Names(model)
    made = {value.name: node for node in model.graph for value in node.outputs}
    for norm, place in zip(norms, places, strict=True):
        holder = made[place[0]]
        patch = Patch(holder, names)
        parameters = [
            patch.constant(np.array(constant.array), name)
            for name, constant in norm.parameters.items()
            if constant.array is not None
        ]
        attributes: dict[str, float | int] = {"epsilon": norm.eps, "momentum": norm.momentum}
        if not norm.spatial:
            attributes["spatial"] = 0
        count = 5 if norm.mode == "training" else 1
        node = ir.node(
            "BatchNormalization",
            [holder.inputs[0], *parameters],
            attributes,
            num_outputs=count,
            name=norm.node.name or "",
        )
        patch.take([node], keep_names=True)
        for name, value in list(zip(place, node.outputs, strict=False))[1:]:
            if name:
                other = made[name]
                other.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
                model.graph.remove(other, safe=True)
                value.name = name
        patch.replace([node.outputs[0]])


def _fixed(shape: ir.Shape | None) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape(
        dim if isinstance(dim, int) and dim > 0 else RANDOM_SIZE if axis else RANDOM_BATCH
        for axis, dim in enumerate(shape)
    )
