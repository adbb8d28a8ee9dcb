"""A batch norm that can be folded, as far as it alone decides."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import onnx_ir as ir

from ..constants import resolve
from ..nodes import BatchNormNode
from .channels import Norm
from .plan import Shape
from .reasons import Refusal, label
from .rounding import round_once
from .weights import Weight, Weights

__all__ = ["Site", "open_site"]


@dataclasses.dataclass(eq=False)
class Site:
    """A node and what it computes, unrounded, with all that was taken into it.

    Attributes
    ----------
    source : BatchNormNode
        The node as it was found.
    parameters : dict of str to Weight
        Its scale, bias, mean and var, as stored.
    norm, original : Norm
        What it computes now, and what it did when it was found.
    rank : int
        Of its input.
    absorbed : list of str
        The nodes that were taken into it.
    """

    source: BatchNormNode
    parameters: dict[str, Weight]
    norm: Norm
    original: Norm
    rank: int
    absorbed: list[str] = dataclasses.field(default_factory=list)

    @property
    def node(self) -> ir.Node:
        """The node in the graph."""
        return self.source.node

    @property
    def x(self) -> ir.Value:
        """What it reads."""
        value = self.node.inputs[0]
        assert value is not None, "found nodes have an input"
        return value

    @property
    def y(self) -> ir.Value:
        """What it gives."""
        return self.node.outputs[0]

    @property
    def dtype(self) -> np.dtype:
        """Of its input and output."""
        known = self.source.dtype
        return self.parameters["scale"].dtype if known is None else known.numpy()

    def as_parameters(self, norm: Norm) -> dict[str, np.ndarray]:
        """Express another batch norm by scale, bias and mean, unrounded, with this var."""
        deviation = np.sqrt(self.parameters["var"].exact() + self.source.eps)
        return {"scale": norm.scale * deviation, "bias": norm.bias, "mean": norm.center}

    def check(self, norm: Norm) -> None:
        """Refuse what the types of its parameters cannot hold."""
        for name, array in self.as_parameters(norm).items():
            round_once(array, self.parameters[name].dtype, f"the {name} of {label(self.node)}")

    def write(self, weights: Weights) -> None:
        """Store what it computes in the graph."""
        exact = self.as_parameters(self.norm)
        for index, name in enumerate(("scale", "bias", "mean"), start=1):
            array, dtype = exact[name], self.parameters[name].dtype
            rounded = round_once(array, dtype, f"the {name} of {label(self.node)}")
            weights.put(self.node, index, rounded, partial(np.array, array), name)


def open_site(found: BatchNormNode, weights: Weights, shape: Shape | None) -> Site:
    """Check that a node is a batch norm in eval mode with constant, usable parameters.

    Raises
    ------
    Refusal
        When it is not.
    """
    if found.mode == "training":
        raise Refusal("it normalizes with the batch's own statistics (training mode): freeze it")
    if found.by_reference:
        raise Refusal(f"the caller of the function sets its {', '.join(found.by_reference)}")
    if any(o.uses() or o.is_graph_output() for o in found.node.outputs[1:]):
        raise Refusal("an output other than Y is used")
    rank = _rank(found, shape)
    if not found.spatial and rank != 2:
        raise Refusal("it has statistics per activation (spatial=0): lower it")
    parameters = {
        name: weights.read(value, f"its {name}")
        for name, value in zip(found.parameters, found.node.inputs[1:5], strict=False)
    }
    if len(parameters) != 4:
        raise Refusal(f"it has {len(found.node.inputs)} inputs, expected 5")
    arrays = {name: weight.exact() for name, weight in parameters.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or arrays["scale"].ndim != 1:
        listed = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise Refusal(f"its parameters are not of one shape [C]: {listed}")
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if isinstance(channels, int) and channels != arrays["scale"].size:
        raise Refusal(f"its parameters are for {arrays['scale'].size} channels, X has {channels}")
    if found.bad_channels.any():
        count = int(found.bad_channels.sum())
        raise Refusal(f"var + epsilon is 0 or less in {count} of its channels")
    scale = arrays["scale"] / np.sqrt(arrays["var"] + found.eps)
    norm = Norm(arrays["mean"], scale, arrays["bias"])
    return Site(found, parameters, norm, norm, rank)


def _rank(found: BatchNormNode, shape: Shape | None) -> int:
    """The rank of X: as declared or inferred, else that of a convolution beside the node."""
    known = shape if shape is not None else found.input_shape
    if known is not None:
        if len(known) < 2:
            raise Refusal(f"its input has {len(known)} dimensions, so no axis of channels")
        return len(known)
    producer = found.node.inputs[0].producer() if found.node.inputs[0] is not None else None
    beside = [producer] if producer is not None else []
    beside += [user for user, _ in found.node.outputs[0].uses()]
    for node in beside:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 1:
            weight = resolve(node.inputs[1]).array
            if weight is not None:
                return weight.ndim
        if node.op_type == "Gemm":
            return 2
    raise Refusal("the rank of its input is not known")
