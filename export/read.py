"""Turn the BatchNormalization nodes of an ONNX model into layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

import cbn

from .files import ModelError, ModelLike
from .nodes import BatchNormNode, find_nodes

if TYPE_CHECKING:
    from cbn import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["from_onnx", "layer_of"]


def from_onnx(
    model: ModelLike, *, rank: int | None = None
) -> dict[str, BatchNorm1d | BatchNorm2d | BatchNorm3d]:
    """Make a layer of each BatchNormalization node, of any opset, subgraphs and functions included.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    rank : int, optional
        Number of dimensions, 2 to 5, of those inputs whose rank the model neither states nor lets
        infer.

    Returns
    -------
    dict of str to BatchNorm1d, BatchNorm2d or BatchNorm3d
        By the names that ``find_nodes`` gives, in graph order; empty when there are no nodes.
        Each layer is in the node's mode, and of X's type: float64 for double, float32 for float
        and for the 16-bit types.

    Raises
    ------
    ModelError
        When the model cannot be read, or a node does not say what a layer needs: its parameters
        are not constant or not of one shape (C,), its statistics are per activation (spatial=0),
        or its rank is not known.

    Notes
    -----
    ``momentum`` is one minus the node's: torch weighs the new value, ONNX the old one.
    ``running_var`` is left as stored, which is right for eval mode in either convention. A
    training node of ONNX would go on to move it by the population variance, the layer moves it by
    n / (n - 1) of that, as torch does. Layers count ``num_batches_tracked`` from 0: ONNX has no
    such thing. ``eps`` and ``momentum`` are the float32 numbers that the file holds, so an eps
    written as 1e-5 comes back as 9.999999747378752e-06.

    Source: ONNX BatchNormalization, opset 1, 6, 7, 9, 14 and 15.
    """
    if rank is not None and rank not in (2, 3, 4, 5):
        raise ValueError(f"expected rank from 2 to 5, got {rank!r}")
    return {node.name: layer_of(node, rank=rank) for node in find_nodes(model)}


def layer_of(
    node: BatchNormNode, *, rank: int | None = None
) -> BatchNorm1d | BatchNorm2d | BatchNorm3d:
    """Make a layer of one node; see ``from_onnx``."""
    if node.by_reference:
        raise ModelError(
            f"BatchNormalization {node.name!r}: {', '.join(node.by_reference)} is set by the "
            "caller of the function that holds it, so it is not one layer"
        )
    parameters = _parameters(node)
    kind = _kind(node, rank)
    try:
        layer = kind(
            len(parameters["weight"]),
            eps=node.eps,
            momentum=1.0 - node.momentum,
            dtype=_dtype(node),
        )
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"BatchNormalization {node.name!r} (epsilon {node.eps:.9g}, momentum "
            f"{node.momentum:.9g} in ONNX's sense, {len(parameters['weight'])} channels) is no "
            f"layer: {error}"
        ) from error
    layer.load_state_dict(parameters)
    return layer.train(node.mode == "training")


def _parameters(node: BatchNormNode) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, constant in node.parameters.items():
        if constant.array is None:
            raise ModelError(
                f"BatchNormalization {node.name!r}: expected a constant {name}, "
                f"got one from: {constant.source}"
            )
        arrays[name] = constant.array
    shapes = {name: array.shape for name, array in arrays.items()}
    # Over (N, C) an activation is a channel, so spatial says nothing.
    if not node.spatial and any(len(shape) != 1 for shape in shapes.values()):
        raise ModelError(
            f"BatchNormalization {node.name!r}: its statistics are per activation (spatial=0, "
            f"parameters of shape {list(shapes['scale'])}), which no layer of cbn computes"
        )
    if not node.spatial and node.rank != 2:
        raise ModelError(
            f"BatchNormalization {node.name!r}: its statistics are per activation (spatial=0), "
            "which no layer of cbn computes for more than 2 dimensions"
        )
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ModelError(
            f"BatchNormalization {node.name!r}: expected parameters of one shape [C], got {got}"
        )
    keys = ("weight", "bias", "running_mean", "running_var")
    dtype = _dtype(node)
    return {key: np.asarray(a, dtype=dtype) for key, a in zip(keys, arrays.values(), strict=True)}


def _kind(node: BatchNormNode, rank: int | None) -> type[BatchNorm1d | BatchNorm2d | BatchNorm3d]:
    known = node.rank if node.rank is not None else rank
    if known is None:
        raise ModelError(
            f"BatchNormalization {node.name!r}: the model does not say how many dimensions its "
            "input has; give rank=2 to 5"
        )
    if known in (2, 3):
        return cbn.BatchNorm1d
    if known == 4:
        return cbn.BatchNorm2d
    if known == 5:
        return cbn.BatchNorm3d
    raise ModelError(
        f"BatchNormalization {node.name!r}: expected an input of 2 to 5 dimensions, got {known}"
    )


def _dtype(node: BatchNormNode) -> str:
    dtype = node.dtype
    if dtype is None and node.scale.array is not None:  # the same in every opset but in theory
        dtype = ir.DataType.from_numpy(node.scale.array.dtype)
    return "float64" if dtype is ir.DataType.DOUBLE else "float32"
