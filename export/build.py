"""Build an ONNX model from a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir

import cbn

from . import forms, opsets

if TYPE_CHECKING:
    from cbn import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["Form", "to_onnx"]

Form = Literal["batchnorm", "affine", "primitives"]

_SPATIAL_NAMES = {0: (), 1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def to_onnx(
    bn: BatchNorm1d | BatchNorm2d | BatchNorm3d,
    opset: int | None = None,
    form: Form = "batchnorm",
    *,
    rank: int | None = None,
    shape: Sequence[int | str | None] | None = None,
    unbiased_running_var: bool = True,
) -> onnx.ModelProto:
    """Build an ONNX model that computes what the layer computes in its present mode.

    Input ``x`` and output ``y`` are of the layer's type and layout. In training mode, when the
    layer tracks running statistics, outputs ``running_mean`` and ``running_var`` of shape (C,)
    hold them as they are after the batch: one step from the layer's present state, since a graph
    keeps none of its own (a momentum of None is the weight that the next batch would have).
    Form ``"batchnorm"`` with `unbiased_running_var` has a fourth output,
    ``running_var_population``: the node's own, see the notes.

    Parameters
    ----------
    bn : BatchNorm1d, BatchNorm2d or BatchNorm3d
        The layer; it is not changed, and the model holds copies of its parameters.
    opset : int, optional
        From 7 to the newest that the installed onnx knows; 18 unless told. The IR version is the
        lowest that the opset allows.
    form : {"batchnorm", "affine", "primitives"}
        ``"batchnorm"``: one BatchNormalization node, between Transposes when the layer is
        channels-last. ``"affine"``: Sub, Mul, Add with the constants of ``bn.fuse()``, eval mode
        alone. ``"primitives"``: arithmetic and, in training mode, ReduceMean, for providers
        without a training kernel.
    rank : int, optional
        Number of dimensions of x. Only BatchNorm1d has a choice: 3, (N, C, L), unless told 2.
    shape : sequence of int, str or None, optional
        x's shape, to fix sizes (int) or to name them (str). Every size but C is open unless told.
    unbiased_running_var : bool
        Whether ``running_var`` is torch's and cbn's, with n / (n - 1) of the batch's population
        variance (the default; some nodes more), or ONNX's own, with the population variance. A
        batch of one value per channel, which cbn refuses, makes the former NaN.

    Returns
    -------
    onnx.ModelProto
        Checked by onnx's checker with full and strict shape inference.

    Raises
    ------
    ValueError
        When opset, form, rank or shape is out of range or does not fit the layer; for
        ``"affine"`` in training mode or without running statistics; for ``"batchnorm"`` of a
        16-bit type that normalizes with the batch; and for running statistics that cannot be
        normalized with.
    TypeError
        When `bn` is no BatchNorm layer.

    Notes
    -----
    Without running statistics eval mode normalizes with the batch's, so the model does: form
    ``"batchnorm"`` becomes a training-mode node with ``y`` as its only output, and an ONNX
    momentum of 1, since nothing is to move.

    From opset 9 on, onnxruntime 1.32 writes a training node's running statistics into its
    initializers unless they are outputs of the graph (onnxruntime#29790): the next run starts
    from there. So they are outputs, the one that is only a step towards ``running_var`` too.

    ONNX keeps epsilon and momentum as float32: a float64 layer whose eps is 1e-5 is exported with
    9.999999747378752e-06 in form ``"batchnorm"``, and with its exact value in the others.

    Sources: ONNX BatchNormalization, opset 7, 9, 14 and 15; ``torch.nn.BatchNorm1d/2d/3d``.
    """
    if not isinstance(bn, cbn.BatchNorm1d | cbn.BatchNorm2d | cbn.BatchNorm3d):
        raise TypeError(
            "expected a cbn.BatchNorm1d, cbn.BatchNorm2d or cbn.BatchNorm3d, got "
            f"{type(bn).__module__}.{type(bn).__qualname__}"
            + (
                ": make a cbn layer and take over its state with load_state_dict"
                if hasattr(bn, "state_dict")
                else ": export the layer that it was fused from, with form='affine'"
                if isinstance(bn, cbn.ScaleShift)
                else ""
            )
        )
    opset = opsets.resolve_opset(opset)
    if form not in get_args(Form):
        accepted = ", ".join(map(repr, get_args(Form)))
        raise ValueError(f"expected form to be one of {accepted}, got {form!r}")
    dims = _dims(bn, rank, shape)
    statistics = _statistics(bn, len(dims))
    stored = bn.running_mean is not None
    batch_statistics = bn.training or not stored
    if form == "affine" and batch_statistics:
        why = "is in training mode" if bn.training else "has no running statistics"
        raise ValueError(f"form 'affine' needs stored statistics, and the layer {why}")
    if form == "batchnorm" and batch_statistics and statistics.dtype.itemsize < 4:
        raise ValueError(
            f"form 'batchnorm' in training mode cannot be {bn.dtype}: onnxruntime converts such a "
            "node to float32 and may then overwrite its scale with its running statistics "
            "(onnxruntime#29790); use form 'primitives'"
        )
    # Fusing is where stored statistics are judged: every form refuses what it refuses.
    fused = None if batch_statistics else bn.fuse()

    tape = ir.tape.Tape()
    dtype = ir.DataType.from_numpy(statistics.dtype)
    given = x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(dims))
    # Spelled out, 16-bit types are read and written in place of float32, as in cbn itself.
    spelled_wide = dtype.itemsize < 4 and form != "batchnorm"
    if spelled_wide:
        statistics = statistics.widened()
        x = tape.op("Cast", [x], {"to": ir.DataType.FLOAT.value})
    if fused is not None and form == "affine":
        made = forms.affine(tape, x, statistics, fused.shift, fused.scale, fused.bias)
    elif form == "batchnorm":
        made = forms.batchnorm(tape, x, statistics, opset, batch_statistics)
    else:
        made = forms.primitives(tape, x, statistics, opset, batch_statistics)
    outputs = {"y": made.y}
    if bn.training and stored and form == "batchnorm":
        mean, var = made.statistics
        outputs |= {"running_mean": mean, "running_var": var}
        if unbiased_running_var:
            unbiased = forms.unbiased_running_var(tape, x, var, statistics)
            outputs |= {"running_var": unbiased, "running_var_population": var}
    elif bn.training and stored:
        mean, var = forms.running_statistics(tape, x, made, statistics, unbiased_running_var)
        outputs |= {"running_mean": mean, "running_var": var}
    if spelled_wide:
        to = {"to": dtype.value}
        outputs = {name: tape.op("Cast", [value], to) for name, value in outputs.items()}
    for name, value in outputs.items():
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(dims if name == "y" else [bn.num_features])
    return _finish(tape, given, list(outputs.values()), opset)


def _dims(
    bn: BatchNorm1d | BatchNorm2d | BatchNorm3d,
    rank: int | None,
    shape: Sequence[int | str | None] | None,
) -> list[int | str]:
    """x's shape: an int where a size is fixed, a name where it is open."""
    if isinstance(bn, cbn.BatchNorm1d):
        ranks: tuple[int, ...] = (3, 2)
    else:
        ranks = (4,) if isinstance(bn, cbn.BatchNorm2d) else (5,)
    if rank is None:
        rank = ranks[0] if shape is None else len(shape)
    accepted = " or ".join(map(str, sorted(ranks)))
    if rank not in ranks:
        raise ValueError(f"expected {type(bn).__name__} with rank {accepted}, got {rank}")
    names = _SPATIAL_NAMES[rank - 2]
    channels = bn.num_features
    dims: list[int | str] = ["N", *names, channels] if bn.channels_last else ["N", channels, *names]
    if shape is None:
        return dims
    if len(shape) != rank:
        raise ValueError(f"expected a shape of {rank} dimensions, got {tuple(shape)}")
    axis = rank - 1 if bn.channels_last else 1
    for i, asked in enumerate(shape):
        if asked is None:
            continue
        if isinstance(asked, bool) or not isinstance(asked, int | str) or asked in ("", 0):
            raise ValueError(f"expected sizes of at least 1, names or None, got {tuple(shape)}")
        if isinstance(asked, int) and (asked < 1 or (i == axis and asked != channels)):
            raise ValueError(
                f"expected sizes of at least 1 and {channels} channels at dimension {axis}, "
                f"got {tuple(shape)}"
            )
        if i != axis:
            dims[i] = asked
    return dims


def _statistics(bn: BatchNorm1d | BatchNorm2d | BatchNorm3d, rank: int) -> forms.Statistics:
    def given(array: np.ndarray | None, default: float) -> np.ndarray:
        filled = np.full(bn.num_features, default, dtype=bn.dtype)
        return filled if array is None else np.asarray(array, dtype=bn.dtype)

    weight, bias = given(bn.weight, 1.0), given(bn.bias, 0.0)
    mean, var, momentum = bn.running_mean, bn.running_var, bn.momentum
    if mean is None or var is None:
        # Never read, but written to by onnxruntime, which shares initializers that are equal.
        taken = (weight, bias)
        free = (n for n in range(4) if not any((array == n).all() for array in taken))
        mean, var, momentum = given(None, next(free)), given(None, next(free)), 0.0
    elif (
        momentum is None
    ):  # the cumulative average: the next batch weighs one of those seen by then
        momentum = 1.0 / ((bn.num_batches_tracked or 0) + 1)
    return forms.Statistics(
        weight=weight,
        bias=bias,
        mean=given(mean, 0.0),
        var=given(var, 1.0),
        eps=float(bn.eps),
        momentum=float(momentum),
        rank=rank,
        axis=rank - 1 if bn.channels_last else 1,
    )


def _finish(
    tape: ir.tape.Tape, x: ir.Value, outputs: list[ir.Value], opset: int
) -> onnx.ModelProto:
    graph = ir.Graph(
        inputs=[x],
        outputs=outputs,
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": opset},
        name="batch_norm",
    )
    model = ir.to_proto(
        ir.Model(
            graph,
            ir_version=opsets.ir_version_for(opset),
            producer_name="cbn",
            producer_version=cbn.__version__,
        )
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model
