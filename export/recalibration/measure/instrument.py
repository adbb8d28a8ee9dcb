"""A copy of a model that gives away the moments of what reaches its batch norms."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...files import ModelError
from ...lower import CannotLower, lower_training
from ...nodes import BatchNormNode, find_nodes
from ...rewrite import drop_unused
from ...surgery import Names, Patch, is_used
from .targets import Targets

__all__ = ["Normalize", "Tap", "instrument", "lower_others", "seal"]

Normalize = Literal["batch", "stored"]
"""What the measured nodes normalize with: the statistics of the batch, or those in the file."""

_SIXTEEN_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Tap:
    """The outputs that tell of one node's input, seen as (N, C, L).

    Attributes
    ----------
    shift : str
        (1, C, 1): what was taken off before anything was summed, the first row's mean.
    mean : str
        (N, C): mean of the rest over L.
    square : str
        (N, C): mean of the squares of the rest over L.
    shape : str
        Shape of the input, int64: (N, C, ...).
    """

    shift: str
    mean: str
    square: str
    shape: str


def instrument(targets: Targets, normalize: Normalize) -> tuple[ir.Model, dict[str, Tap]]:
    """Replace the nodes to re-estimate, in a copy, by reductions that normalize and tell.

    Parameters
    ----------
    targets : Targets
    normalize : {"batch", "stored"}

    Returns
    -------
    model : onnx_ir.Model
        Its outputs are those of the taps alone, all of size (N, C) at most. It shares its weights
        with the model before. What only served the old outputs is gone.
    taps : dict of str to Tap
        By node.

    Raises
    ------
    ModelError
        When a node that is not asked for is in training mode and cannot be spelled out.

    Notes
    -----
    With s the mean of the first row and d = x - s, a batch has the mean s + mean(d) and the
    variance mean(d²) - mean(d)², the population's. As one of its N rows, s is at most sqrt(N)
    deviations from the batch's mean, so that at most a factor of N + 1 is lost to cancellation,
    however large the mean is. All of it is in float32 (float64 where x is); float16 and bfloat16
    are cast first.

    onnxruntime's ReduceMean sums in float32 too, which costs digits in long rows: with L of
    1,000,000 normal values the variance was 2e-5 off, with a mean of 0 or of 3 deviations.
    ``sweep`` sums in float64 and was 2e-14 off there.
    """
    copy = targets.model.clone()
    lower_others(copy, targets)
    wanted = {member for target in targets.targets for member in target.members}
    names = Names(copy)
    before = list(copy.graph.outputs)
    copy.graph.outputs.clear()
    taps = {}
    for norm in find_nodes(copy):
        if norm.name in wanted:
            taps[norm.name] = _tap(copy.graph, norm, names, normalize)
    drop_unused(before)
    drop_unused(value for node in list(copy.graph) for value in node.outputs)
    seal(copy)
    return copy, taps


def lower_others(model: ir.Model, targets: Targets) -> None:
    """Spell out, in place, nodes in training mode that are not re-estimated.

    They normalize with the batch, as they do in the model, but never through onnxruntime's
    training_mode=1, which may write into initializers (onnxruntime#29790).

    Raises
    ------
    ModelError
        When one cannot be spelled out.
    """
    wanted = {member for target in targets.targets for member in target.members}
    names = Names(model)
    for norm in find_nodes(model):
        if norm.mode == "training" and norm.name not in wanted:
            try:
                lower_training(norm, names)
            except CannotLower as reason:
                raise ModelError(
                    f"BatchNormalization {norm.name!r} is in training mode, is not re-estimated, "
                    f"and cannot be spelled out: {reason}"
                ) from reason


def seal(model: ir.Model) -> None:
    """Let nobody feed initializers, in place: onnxruntime then takes them as constants."""
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)
    model.ir_version = max(model.ir_version, 4)  # before, initializers had to be inputs


def _tap(graph: ir.Graph, norm: BatchNormNode, names: Names, normalize: Normalize) -> Tap:
    node = norm.node
    x, scale, bias, mean, var = node.inputs
    patch = _Reductions(node, names, norm)
    assert norm.num_features is not None
    # x is asked for its shape before anything else, so that its memory can be used again at once.
    shape = patch.op("Shape", [x])
    samples = patch.op("Gather", [shape, patch.integers([0])])
    flat = patch.op("Concat", [samples, patch.integers([norm.num_features, -1])], {"axis": 0})
    rows = patch.op("Reshape", [patch.working(x), flat])
    first = patch.slice_first(rows)
    shift = patch.mean(first, [0, 2], keep=True)
    rest = patch.op("Sub", [rows, shift])
    means = patch.mean(rest, [2])
    # Not ReduceSumSquare: onnxruntime's adds one by one in float32, and loses a digit.
    squares = patch.mean(patch.op("Mul", [rest, rest]), [2])
    epsilon = {"epsilon": norm.eps}
    if normalize == "batch":
        batch_mean = patch.mean(means, [0])
        square = patch.mean(squares, [0])
        batch_var = patch.op("Sub", [square, patch.op("Mul", [batch_mean, batch_mean])])
        batch_var = patch.op("Relu", [batch_var])  # rounding may leave it below 0
        parameters = [patch.working(scale), patch.working(bias), batch_mean, batch_var]
        y = patch.op("BatchNormalization", [rest, *parameters], epsilon)
        y = patch.op("Reshape", [y, shape])
        if norm.dtype in _SIXTEEN_BITS:
            y = patch.op("Cast", [y], {"to": norm.dtype.value})
    else:
        y = patch.op("BatchNormalization", [x, scale, bias, mean, var], epsilon)
    given: list[ir.Value | None] = [y]
    for index, output in enumerate(node.outputs[1:], 1):
        kept = is_used(output)
        given.append(patch.op("Identity", [mean if index % 2 else var]) if kept else None)
    patch.replace(given)
    told = (shift, means, squares, shape)
    graph.outputs.extend(told)
    return Tap(*(str(value.name) for value in told))


class _Reductions(Patch):
    """A patch whose operators are written as the node's opset wants them."""

    def __init__(self, node: ir.Node, names: Names, norm: BatchNormNode) -> None:
        super().__init__(node, names)
        self._opset = norm.opset
        self.type = ir.DataType.DOUBLE if norm.dtype is ir.DataType.DOUBLE else ir.DataType.FLOAT

    def integers(self, numbers: list[int]) -> ir.Value:
        return self.constant(np.array(numbers, np.int64), "numbers")

    def working(self, value: ir.Value | None) -> ir.Value:
        """The value in the type that is computed in; onnxruntime drops casts to the same."""
        assert value is not None
        if value.dtype is self.type:
            return value
        return self.op("Cast", [value], {"to": self.type.value})

    def slice_first(self, value: ir.Value) -> ir.Value:
        """Its first row; the bounds are inputs from opset 10 on."""
        bounds = {"starts": [0], "ends": [1], "axes": [0]}
        if self._opset < 10:
            return self.op("Slice", [value], bounds)
        return self.op("Slice", [value, *(self.integers(bound) for bound in bounds.values())])

    def mean(self, value: ir.Value, axes: list[int], *, keep: bool = False) -> ir.Value:
        """The mean over axes; they are an input from opset 18 on."""
        if self._opset < 18:
            return self.op("ReduceMean", [value], {"axes": axes, "keepdims": int(keep)})
        return self.op("ReduceMean", [value, self.integers(axes)], {"keepdims": int(keep)})
