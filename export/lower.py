"""Spell BatchNormalization nodes out in operators that every provider has."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from . import forms
from .constants import Constant
from .data import DataLike
from .files import ModelLike
from .nodes import BatchNormNode, find_nodes
from .prepare import prepare
from .read import layer_of
from .rewrite import KEPT, Changes, RewriteResult, RewriteRow, drop_unused, is_fixed, run_rewrite
from .sessions import Providers
from .surgery import Names, Patch, is_used

__all__ = ["CannotLower", "lower", "lower_training"]

_SIXTEEN_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class CannotLower(ValueError):
    """A node cannot be lowered; the message is the reason."""


def lower(
    model: ModelLike,
    *,
    affine: bool = False,
    nodes: Collection[str] | None = None,
    data: DataLike | None = None,
    seed: int = 0,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    prove: bool = True,
) -> RewriteResult:
    """Replace what few providers run by elementary operators, and prove the result.

    - A node in training mode becomes reductions and arithmetic, and its running statistics too
      where they are used. No provider needs a training kernel for it, and nothing is written into
      initializers.
    - A node with statistics per activation (spatial=0) becomes Sub, Mul, Add.
    - A model of an opset below 7 is lifted to 7 by onnx's version converter first.
    - With `affine`, a node in eval mode becomes ``(x - shift) * scale + bias``, the form that keeps
      its digits where the mean is far above the deviation. Otherwise it stays.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    affine : bool, default: False
        Whether nodes in eval mode are spelled out too.
    nodes : collection of str, optional
        The names, as ``find_nodes`` gives them, of the nodes to lower; all when None.
    data, seed, providers, num_threads
        For the proof: see ``prove``.
    prove : bool, default: True
        Whether to prove the result.

    Returns
    -------
    RewriteResult

    Raises
    ------
    ModelError
        When the model cannot be read, has no BatchNormalization, none of a name in `nodes`, or
        cannot be lifted.

    Notes
    -----
    Training nodes reduce in two passes, in float32 where x is of a 16-bit type, and else in x's
    own; deviations are centered twice. Running statistics follow ONNX: momentum weighs the old
    value, and the variance is the population's.

    Source: ONNX BatchNormalization, opset 1 to 15.
    """
    prepared = prepare(model, nodes)

    def rewrite(copy: ir.Model) -> Changes:
        names = Names(copy)
        rows: list[RewriteRow] = []
        touched: dict[str, str] = {}
        for norm in find_nodes(copy):
            if norm.name not in prepared.wanted:
                rows.append(RewriteRow(norm.name, KEPT, reason="not asked for"))
                continue
            row = _lower_node(copy, norm, names, affine)
            if prepared.lifted and not row.changed:
                row = dataclasses.replace(row, action="lifted to opset 7")
            rows.append(row)
            if row.value:
                touched[row.value] = row.value
        return Changes(rows, touched, prepared.notes)

    return run_rewrite(
        prepared.model,
        rewrite,
        data=data,
        seed=seed,
        providers=providers,
        num_threads=num_threads,
        prove_it=prove,
    )


def _lower_node(model: ir.Model, norm: BatchNormNode, names: Names, affine: bool) -> RewriteRow:
    value = "" if norm.path else str(norm.node.outputs[0].name)
    try:
        if norm.mode == "training":
            lower_training(norm, names)
            return RewriteRow(norm.name, "lowered to primitives", value=value)
        if not norm.spatial and norm.rank != 2:
            _lower_per_activation(model, norm, names)
            return RewriteRow(norm.name, "lowered to Sub, Mul, Add", value=value)
        if affine:
            _lower_affine(model, norm, names)
            return RewriteRow(norm.name, "lowered to Sub, Mul, Add", value=value)
    except CannotLower as reason:
        return RewriteRow(norm.name, KEPT, ok=False, reason=str(reason))
    return RewriteRow(norm.name, KEPT, reason="eval mode: every provider runs it as it is")


def lower_training(norm: BatchNormNode, names: Names) -> None:
    """Replace a node in training mode by reductions and arithmetic.

    Raises
    ------
    CannotLower
        When it is not known what the node computes, or in which type.
    """
    node = norm.node
    if norm.rank is None:
        raise CannotLower("the rank of its input is not known")
    if norm.by_reference:
        raise CannotLower(f"the function's caller sets {', '.join(norm.by_reference)}")
    if not norm.spatial and norm.rank != 2:
        raise CannotLower("statistics per activation (spatial=0) in training mode")
    if len(node.inputs) != 5 or any(value is None for value in node.inputs):
        raise CannotLower("it lacks inputs")
    dtype = _dtype(norm)
    working = ir.DataType.FLOAT if dtype in _SIXTEEN_BITS else dtype
    patch = Patch(node, names)
    column = [1, -1, *[1] * (norm.rank - 2)]
    x, weight, bias = node.inputs[0], *_columns(patch, norm, ("scale", "bias"), working, column)
    assert x is not None
    if working is not dtype:
        x = patch.op("Cast", [x], {"to": working.value})
    reduced = [0, *range(2, norm.rank)]
    axes = patch.constant(np.array(reduced), "axes") if norm.opset >= 18 else None
    eps = patch.constant(np.asarray(norm.eps, working.numpy()), "eps")
    tape = ir.tape.Tape()
    made = forms.normalize_batch(tape, x, weight, bias, eps, reduced, axes)
    patch.take(tape.nodes)
    y = made.y if working is dtype else patch.op("Cast", [made.y], {"to": dtype.value})
    outputs: list[ir.Value | None] = [y, *[None] * (len(node.outputs) - 1)]
    for index in range(1, len(node.outputs)):
        if is_used(node.outputs[index]):
            outputs[index] = _statistic(patch, norm, made, index, working)
    old = list(node.inputs[1:])
    patch.replace(outputs)
    drop_unused(old)


def _statistic(
    patch: Patch, norm: BatchNormNode, made: forms.Outputs, index: int, working: ir.DataType
) -> ir.Value:
    """Make the output `index`: running mean, running var, and before opset 14 the batch's own."""
    flat = patch.constant(np.array([-1]), "flat")
    batch = patch.op("Reshape", [made.statistics[(index - 1) % 2], flat])
    stored = norm.node.inputs[3 + (index - 1) % 2]
    assert stored is not None
    name = "mean" if index % 2 else "var"
    kept_type = _type_of(stored, norm.parameters[name]) or _dtype(norm)
    if index > 2:  # saved_mean and saved_var
        return batch if kept_type is working else patch.op("Cast", [batch], {"to": kept_type.value})
    numbers = working.numpy()
    if kept_type is not working:
        stored = patch.op("Cast", [stored], {"to": working.value})
    keep = patch.constant(np.asarray(norm.momentum, numbers), "momentum")
    rest = patch.constant(np.asarray(1 - norm.momentum, numbers), "rest")
    blended = patch.op("Add", [patch.op("Mul", [stored, keep]), patch.op("Mul", [batch, rest])])
    if kept_type is working:
        return blended
    return patch.op("Cast", [blended], {"to": kept_type.value})


def _lower_affine(model: ir.Model, norm: BatchNormNode, names: Names) -> None:
    _require_fixed(model, norm)
    dtype = _dtype(norm)
    try:
        layer = layer_of(norm)
        fused = layer.eval().fuse()
    except ValueError as error:
        raise CannotLower(str(error)) from error
    assert norm.rank is not None
    shape = (-1, *[1] * (norm.rank - 2))
    _replace_affine(
        norm, names, dtype, *(a.reshape(shape) for a in (fused.shift, fused.scale, fused.bias))
    )


def _lower_per_activation(model: ir.Model, norm: BatchNormNode, names: Names) -> None:
    """Statistics of shape (C, ...), that of one sample, which meets x as it is."""
    _require_fixed(model, norm)
    scale, bias, mean, var = (
        np.asarray(constant.array, np.float64) for constant in norm.parameters.values()
    )
    if norm.rank is not None and scale.ndim != norm.rank - 1:
        raise CannotLower(
            f"spatial=0 wants parameters of the shape of a sample, and they are {list(scale.shape)}"
        )
    if norm.bad_channels.any() or np.isnan(var).any():
        raise CannotLower("var + epsilon is 0 or less")
    dtype = _dtype(norm)
    factor = scale / np.sqrt(var + norm.eps)
    working = np.dtype(np.float32) if dtype in _SIXTEEN_BITS else dtype.numpy()
    shift = mean.astype(working).astype(np.float64)
    _replace_affine(norm, names, dtype, shift, factor, bias + (shift - mean) * factor)


def _replace_affine(
    norm: BatchNormNode,
    names: Names,
    dtype: ir.DataType,
    shift: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
) -> None:
    node = norm.node
    patch = Patch(node, names)
    x = node.inputs[0]
    working = ir.DataType.FLOAT if dtype in _SIXTEEN_BITS else dtype
    numbers = working.numpy()
    if working is not dtype:
        x = patch.op("Cast", [x], {"to": working.value})
    centered = patch.op("Sub", [x, patch.constant(shift.astype(numbers), "shift")])
    scaled = patch.op("Mul", [centered, patch.constant(scale.astype(numbers), "scale")])
    y = patch.op("Add", [scaled, patch.constant(bias.astype(numbers), "bias")])
    if working is not dtype:
        y = patch.op("Cast", [y], {"to": dtype.value})
    old = list(node.inputs[1:])
    patch.replace([y, *[None] * (len(node.outputs) - 1)])
    drop_unused(old)


def _columns(
    patch: Patch,
    norm: BatchNormNode,
    chosen: tuple[str, ...],
    working: ir.DataType,
    column: list[int],
) -> list[ir.Value]:
    """Bring parameters of shape (C,) to the working type and beside x's channels."""
    found = []
    for (name, constant), value in zip(norm.parameters.items(), norm.node.inputs[1:], strict=False):
        if name not in chosen:
            continue
        if constant.array is not None and not constant.overridable:
            array = np.array(constant.array).astype(working.numpy()).reshape(column[1:])
            found.append(patch.constant(array, name))
            continue
        if _type_of(value, constant) is not working:
            value = patch.op("Cast", [value], {"to": working.value})
        found.append(patch.op("Reshape", [value, patch.constant(np.array(column[1:]), "column")]))
    return found


def _require_fixed(model: ir.Model, norm: BatchNormNode) -> None:
    if norm.by_reference:
        raise CannotLower(f"the function's caller sets {', '.join(norm.by_reference)}")
    for name, constant in norm.parameters.items():
        if not is_fixed(constant, model):
            raise CannotLower(f"{name} is not fixed by the model: {constant.source}")


def _dtype(norm: BatchNormNode) -> ir.DataType:
    found = norm.dtype or _type_of(norm.node.inputs[1], norm.scale)
    if found is None:
        raise CannotLower("the type of its input is not known")
    return found


def _type_of(value: ir.Value | None, constant: Constant) -> ir.DataType | None:
    if constant.array is not None:
        return ir.DataType.from_numpy(constant.array.dtype)
    return None if value is None else value.dtype
