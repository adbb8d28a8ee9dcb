"""The ONNX operators that compute a batch norm, in each of its forms.

Each function appends nodes to a tape and returns the values that they make; what becomes of those
(a new model, or a replacement in an old one) is the caller's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from . import opsets

__all__ = [
    "Outputs",
    "Statistics",
    "affine",
    "batchnorm",
    "normalize_batch",
    "primitives",
    "running_statistics",
    "unbiased_running_var",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What a batch norm over `rank` dimensions, with channels on `axis`, is made of.

    Attributes
    ----------
    weight, bias, mean, var : numpy.ndarray
        Of shape (C,) and the type that the graph computes in.
    eps : float
        Added to the variance, under the root.
    momentum : float
        torch's: the weight of the *new* statistics.
    rank, axis : int
        Number of dimensions of x, and the one that holds the channels.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float
    momentum: float
    rank: int
    axis: int

    @property
    def dtype(self) -> np.dtype:
        """The type that the graph computes in."""
        return self.weight.dtype

    @property
    def channels(self) -> int:
        """C."""
        return len(self.weight)

    @property
    def reduced_axes(self) -> list[int]:
        """The dimensions that the statistics run over: all but the channels."""
        return [axis for axis in range(self.rank) if axis != self.axis]

    def widened(self) -> Statistics:
        """Return the same with arrays of float32."""
        arrays = {name: getattr(self, name) for name in ("weight", "bias", "mean", "var")}
        wide = {name: array.astype(np.float32) for name, array in arrays.items()}
        return dataclasses.replace(self, **wide)

    def beside_x(self, array: np.ndarray) -> np.ndarray:
        """Shape (C,) so that it meets x's channels when it is broadcast."""
        return array.reshape([-1, *[1] * (self.rank - 1 - self.axis)])


class Outputs(NamedTuple):
    """What a form makes: y of x's shape and, in training mode, statistics."""

    y: ir.Value
    mean: ir.Value | None = None
    var: ir.Value | None = None

    @property
    def statistics(self) -> tuple[ir.Value, ir.Value]:
        """`mean` and `var` of a training form; a ValueError for others."""
        if self.mean is None or self.var is None:
            raise ValueError("a form in eval mode makes no statistics")
        return self.mean, self.var


def affine(
    tape: ir.tape.Tape,
    x: ir.Value,
    like: Statistics,
    shift: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
) -> Outputs:
    """``(x - shift) * scale + bias``, arrays of shape (C,): the form of ``cbn.ScaleShift``."""
    centered = tape.op("Sub", [x, _constant(tape, like, "shift", like.beside_x(shift))])
    scaled = tape.op("Mul", [centered, _constant(tape, like, "scale", like.beside_x(scale))])
    return Outputs(tape.op("Add", [scaled, _constant(tape, like, "bias", like.beside_x(bias))]))


def batchnorm(
    tape: ir.tape.Tape, x: ir.Value, of: Statistics, opset: int, training: bool
) -> Outputs:
    """One BatchNormalization node, between Transposes when the channels are not dimension 1.

    In training mode `mean` and `var` are the running statistics of shape (C,), ONNX's: made with
    the population variance. Make them outputs of the graph: onnxruntime may otherwise write them
    over the initializers.
    Source: ONNX BatchNormalization, opset 7 and later.
    """
    order = [0, of.axis, *[axis for axis in range(1, of.rank) if axis != of.axis]]
    moved = order != sorted(order)
    if moved:
        x = tape.op("Transpose", [x], {"perm": order})
    # Initializers of its own, each distinct: onnxruntime may write into them in training mode.
    names = {"weight": of.weight, "bias": of.bias, "input_mean": of.mean, "input_var": of.var}
    inputs = [x, *[_constant(tape, of, name, array) for name, array in names.items()]]
    attributes: dict[str, float | int] = {"epsilon": of.eps, "momentum": 1.0 - of.momentum}
    version = opsets.version_at(opset)
    if training and version.mode_from == "training_mode":
        attributes["training_mode"] = 1
    # onnxruntime wants every output in training mode, used or not.
    made = tape.op_multi_out(
        "BatchNormalization",
        inputs,
        attributes,
        num_outputs=len(version.outputs) if training else 1,
        name="BatchNormalization",
    )
    y = made[0]
    if moved:
        y = tape.op("Transpose", [y], {"perm": [order.index(axis) for axis in range(of.rank)]})
    return Outputs(y, made[1], made[2]) if training else Outputs(y)


def unbiased_running_var(
    tape: ir.tape.Tape, x: ir.Value, running_var: ir.Value, of: Statistics
) -> ir.Value:
    """Turn the running_var of a BatchNormalization node, ONNX's, into torch's.

    Both are ``(1 - momentum) * old + momentum * var``, with the population variance in ONNX and
    n / (n - 1) of it in torch.
    """
    # What the node itself weighs the old value with: its attribute, a float32.
    kept = (of.var * float(np.float32(1.0 - of.momentum))).astype(of.dtype)
    old = _constant(tape, of, "kept_var", kept)
    new = tape.op("Mul", [tape.op("Sub", [running_var, old]), _bessel(tape, x, of)])
    return tape.op("Add", [old, new])


def primitives(
    tape: ir.tape.Tape, x: ir.Value, of: Statistics, opset: int, training: bool
) -> Outputs:
    """Elementwise operators and ReduceMean: every provider has them, none needs a training kernel.

    In training mode `mean` and `var` are the batch's own, the latter the population variance,
    with x's number of dimensions. They take two passes, and the deviations are centered twice:
    the mean of a float32 array is itself a float32, so far from zero it misses by more than y may.
    """
    weight = _constant(tape, of, "weight", of.beside_x(of.weight))
    bias = _constant(tape, of, "bias", of.beside_x(of.bias))
    eps = _constant(tape, of, "eps", np.asarray(of.eps))
    if training:
        axes = None if opset < 18 else _axes(tape, of)
        return normalize_batch(tape, x, weight, bias, eps, of.reduced_axes, axes)
    mean = _constant(tape, of, "input_mean", of.beside_x(of.mean))
    var = _constant(tape, of, "input_var", of.beside_x(of.var))
    centered = tape.op("Sub", [x, mean])
    return Outputs(_scale(tape, centered, var, weight, bias, eps))


def normalize_batch(
    tape: ir.tape.Tape,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value,
    eps: ir.Value,
    reduced_axes: Sequence[int],
    axes: ir.Value | None,
) -> Outputs:
    """Normalize with the batch's own statistics; all values are of x's type and meet it broadcast.

    `axes` holds `reduced_axes` from opset 18 on, where ReduceMean takes them as an input, and is
    None before.
    """
    rough_mean = _reduce_mean(tape, x, reduced_axes, axes)
    rough = tape.op("Sub", [x, rough_mean])
    rest = _reduce_mean(tape, rough, reduced_axes, axes)
    mean = tape.op("Add", [rough_mean, rest])
    centered = tape.op("Sub", [rough, rest])
    var = _reduce_mean(tape, tape.op("Mul", [centered, centered]), reduced_axes, axes)
    return Outputs(_scale(tape, centered, var, weight, bias, eps), mean, var)


def _scale(
    tape: ir.tape.Tape,
    centered: ir.Value,
    var: ir.Value,
    weight: ir.Value,
    bias: ir.Value,
    eps: ir.Value,
) -> ir.Value:
    deviation = tape.op("Sqrt", [tape.op("Add", [var, eps])])
    scaled = tape.op("Mul", [tape.op("Div", [centered, deviation]), weight])
    return tape.op("Add", [scaled, bias])


def running_statistics(
    tape: ir.tape.Tape, x: ir.Value, batch: Outputs, of: Statistics, unbiased: bool
) -> tuple[ir.Value, ir.Value]:
    """Blend a batch's statistics, from ``primitives``, into the stored ones; both of shape (C,)."""
    channels = tape.initializer(ir.tensor(np.array([of.channels])), "channels")
    mean, var = (tape.op("Reshape", [value, channels]) for value in batch.statistics)
    if unbiased:
        var = tape.op("Mul", [var, _bessel(tape, x, of)])
    return _blend(tape, of, "mean", of.mean, mean), _blend(tape, of, "var", of.var, var)


def _blend(
    tape: ir.tape.Tape, of: Statistics, name: str, old: np.ndarray, new: ir.Value
) -> ir.Value:
    """``(1 - momentum) * old + momentum * new``, the first term computed here."""
    kept = _constant(tape, of, f"kept_{name}", old.astype(np.float64) * (1.0 - of.momentum))
    momentum = _constant(tape, of, f"momentum_{name}", np.asarray(of.momentum))
    return tape.op("Add", [kept, tape.op("Mul", [new, momentum])])


def _bessel(tape: ir.tape.Tape, x: ir.Value, of: Statistics) -> ir.Value:
    """n / (n - 1), with n the values per channel in the batch at hand."""
    channels = tape.initializer(ir.tensor(np.array(of.channels)), "channel_count")
    count = tape.op("Div", [tape.op("Size", [x]), channels])
    count = tape.op("Cast", [count], {"to": ir.DataType.from_numpy(of.dtype)})
    others = tape.op("Sub", [count, _constant(tape, of, "one", np.asarray(1.0))])
    return tape.op("Div", [count, others])


def _reduce_mean(
    tape: ir.tape.Tape, x: ir.Value, reduced_axes: Sequence[int], axes: ir.Value | None
) -> ir.Value:
    if axes is None:
        return tape.op("ReduceMean", [x], {"axes": list(reduced_axes), "keepdims": 1})
    return tape.op("ReduceMean", [x, axes], {"keepdims": 1})


def _axes(tape: ir.tape.Tape, of: Statistics) -> ir.Value:
    return tape.initializer(ir.tensor(np.array(of.reduced_axes)), "axes")


def _constant(tape: ir.tape.Tape, of: Statistics, name: str, array: np.ndarray) -> ir.Value:
    # A copy: the layer's own arrays move on after the export.
    return tape.initializer(ir.tensor(np.array(array, dtype=of.dtype), name=name), name)
