"""Check that onnxruntime and cbn compute the same, node by node, and that optimization keeps it."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

import cbn

from . import opsets, recompute
from .build import Form, to_onnx
from .check_report import CrosscheckReport, CrosscheckRow, make_row
from .data import DataLike, batches, load_or_random
from .files import ModelError, ModelLike, load
from .inputs import Feeds, model_inputs, not_finite
from .nodes import BatchNormNode, find_nodes
from .outputs import OutputCheck, check_outputs
from .placement import CUDA
from .probe import NodeCheck, check_nodes
from .providers import uses_cuda, uses_tf32
from .sessions import Providers, RunError, make_session, provider_in_use, run_session
from .surgery import inline_functions
from .tolerance import EVAL_CUDA_ULP, Agreement, in_type, tf32_output_ulp

__all__ = ["CrosscheckReport", "CrosscheckRow", "crosscheck"]

Layer = cbn.BatchNorm1d | cbn.BatchNorm2d | cbn.BatchNorm3d

# Whose float32 products CUDA may round to TF32.
_TF32 = frozenset(
    {"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "GRU", "LSTM", "MatMul", "RNN"}
)

_LAYER_BATCH = 8
_LAYER_SIZE = 8


def crosscheck(
    subject: ModelLike | Layer,
    x: DataLike | None = None,
    providers: Providers = "cpu",
    *,
    seed: int = 0,
    num_threads: int | None = None,
) -> CrosscheckReport:
    """Check a model or a layer: onnxruntime against cbn, and optimized against not.

    Every BatchNormalization node is run by onnxruntime as it is written (optimization off); cbn
    recomputes it from onnxruntime's own input of that node, so that errors of other operators do
    not count. A node in training mode is run twice, its running statistics are compared too, by
    ONNX's conventions. Then each output of the whole model is compared between optimization off
    and on, where nodes may be fused away. Of a layer, the model that ``to_onnx`` builds in its
    present mode is checked, and also compared with what the layer itself gives.

    Parameters
    ----------
    subject : str, os.PathLike, bytes, onnx.ModelProto, onnx_ir.Model or BatchNorm1d/2d/3d
        The model or layer; it is not changed.
    x : optional
        Input data: what ``load_data`` takes for a model, an array for a layer. A model gets it in
        batches where it fixes the batch size or there are more than 32 samples, and its nodes in
        training mode then see each batch by itself; a layer takes it whole. Seeded random inputs
        when None.
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
        As for ``make_session``.
        On CUDA nodes get the tolerance of cuDNN's arithmetic. TF32 is off, but for a list that
        leaves it on: then float32 outputs may differ by 1/64 of their largest value.
    seed : int, default: 0
        Of the random inputs.
    num_threads : int, optional
        For onnxruntime and cbn; each decides for itself when None.

    Returns
    -------
    CrosscheckReport
        True when every row holds. A node that cannot be checked, such as one inside a subgraph,
        does not hold, and its remark says why.

    Raises
    ------
    ModelError
        When the model cannot be read or run, has no BatchNormalization, or has one of an opset
        below 7, for which onnxruntime has no kernel, or in training mode from opset 14 on, which
        CUDA refuses: ``lower`` it first. A layer is checked in form ``"primitives"`` there.
    DataError
        When the data cannot be read or does not fit, or holds no finite number.
    ProviderError
        When a provider that was asked for is not in use, or not for all nodes.
    """
    if isinstance(subject, Layer):
        return _check_layer(subject, x, providers, seed, num_threads)
    model = inline_functions(load(subject))
    nodes = find_nodes(model)
    _require_runnable(nodes, subject)
    feeds, words = load_or_random(model, x, seed)
    notes = not_finite(feeds)
    parts = list(batches(feeds, model_inputs(model)))
    try:
        rows = _model_rows(model, nodes, parts, providers, num_threads)
    except RunError as error:
        if x is not None:
            raise
        raise RunError(
            f"{error}; these inputs are random, made up from the shapes that the model declares: "
            "give data that fits it"
        ) from error
    return CrosscheckReport(rows, words, notes)


def _model_rows(
    model: ir.Model,
    nodes: Sequence[BatchNormNode],
    parts: Sequence[Feeds],
    providers: Providers,
    num_threads: int | None,
) -> tuple[CrosscheckRow, ...]:
    checks, provider = check_nodes(model, nodes, parts, providers, num_threads)
    rows = [_node_row(check, provider) for check in checks]
    repeat = any(node.mode == "training" for node in nodes)
    rounded = _rounded_outputs(model, providers)
    for output in check_outputs(model, parts, providers, num_threads, repeat=repeat):
        if output.name in rounded and output.agreement is not None:
            bound = max(output.agreement.tolerance, tf32_output_ulp())
            agreement = dataclasses.replace(output.agreement, tolerance=bound)
            output = dataclasses.replace(output, agreement=agreement)
        rows.append(_output_row(output, provider))
    return tuple(rows)


def _rounded_outputs(model: ir.Model, providers: Providers) -> set[str | None]:
    """Name the float32 outputs of a model, where CUDA may round to TF32 on the way to them."""
    if not uses_tf32(providers) or not any(n.op_type in _TF32 for g in model.graphs() for n in g):
        return set()
    return {value.name for value in model.graph.outputs if value.dtype is ir.DataType.FLOAT}


def _require_runnable(nodes: Sequence[BatchNormNode], subject: ModelLike) -> None:
    if not nodes:
        which = subject if isinstance(subject, str | os.PathLike) else "the model"
        raise ModelError(
            f"{which} has no BatchNormalization node: nothing to check (exporters often fold them "
            "into the convolutions before them)"
        )
    for node in nodes:
        if node.opset < opsets.OLDEST_BUILT:
            raise ModelError(
                f"node {node.name!r} is BatchNormalization of opset {node.opset}: onnxruntime has "
                f"it from opset {opsets.OLDEST_BUILT} on, so the model cannot be run"
            )


def _check_layer(
    bn: Layer, x: Any, providers: Providers, seed: int, num_threads: int | None
) -> CrosscheckReport:
    if np.dtype(bn.dtype).name == "bfloat16":
        raise ModelError(
            "onnxruntime has no BatchNormalization of bfloat16 on the CPU, and takes no such "
            "arrays from NumPy: check the layer in float32"
        )
    # In training mode onnxruntime has no sound node of a 16-bit type, and none at all on CUDA.
    spelled = np.dtype(bn.dtype).itemsize < 4 or uses_cuda(providers)
    spelled = spelled and (bn.training or bn.running_mean is None)
    form: Form = "primitives" if spelled else "batchnorm"
    given = None if x is None else np.asarray(x)
    model = load(to_onnx(bn, form=form, rank=None if given is None else _rank(bn, given)))
    feeds, words = load_or_random(model, given, seed, batch=_LAYER_BATCH, size=_LAYER_SIZE)
    notes = not_finite(feeds)
    twin = _as_stored(bn)
    expected = {"y": twin(feeds["x"])}
    rows = _model_rows(model, find_nodes(model), [feeds], providers, num_threads)
    session = make_session(model, providers, optimize=False, num_threads=num_threads)
    actual = run_session(session, feeds)
    agreements = _layer_agreements(bn, twin, feeds["x"], actual, expected["y"])
    provider = provider_in_use(session, "BatchNormalization")
    if not bn.training and bn.track_running_stats:
        agreements = {"y": _on_provider(agreements["y"], provider, np.dtype(bn.dtype))}
    own = tuple(
        make_row("layer", name, actual[name].shape, provider, agreement, mode=None)
        for name, agreement in agreements.items()
    )
    return CrosscheckReport(rows + own, words, notes)


def _rank(bn: Layer, x: np.ndarray) -> int | None:
    return x.ndim if isinstance(bn, cbn.BatchNorm1d) and x.ndim in (2, 3) else None


def _as_stored(bn: Layer) -> Layer:
    """Copy a layer, with eps and momentum rounded to float32 as ONNX attributes are."""
    twin = copy.deepcopy(bn)
    twin.eps = float(np.float32(bn.eps))
    if bn.track_running_stats:
        weight = bn.momentum
        if weight is None:
            weight = 1 / ((bn.num_batches_tracked or 0) + 1)
        twin.momentum = 1 - float(np.float32(1 - weight))
    return twin


def _layer_agreements(
    before: Layer, after: Layer, x: np.ndarray, actual: dict[str, np.ndarray], y: np.ndarray
) -> dict[str, Agreement]:
    """Compare what the graph gives with what the layer gave, in each of its outputs."""
    channels = before.num_features
    axis = -1 if before.channels_last else 1
    ones, zeros = np.ones(channels), np.zeros(channels)
    tracked = before.track_running_stats
    parameters = recompute.Parameters(
        scale=before.weight if before.weight is not None else ones,
        bias=before.bias if before.bias is not None else zeros,
        mean=before.running_mean if before.running_mean is not None else zeros,
        var=before.running_var if before.running_var is not None else ones,
        eps=after.eps,
        momentum=1 - after.momentum if tracked and after.momentum is not None else 0.0,
    )
    given, got, wanted = (np.moveaxis(array, axis, 1) for array in (x, actual["y"], y))
    if not before.training and tracked:
        return {"y": recompute.check_eval(given, got, wanted, parameters)}
    stats = cbn.batch_stats(x, axis=axis)
    result = {"y": recompute.check_training(given, got, wanted, parameters, stats)}
    if before.training and after.running_mean is not None and after.running_var is not None:
        result |= recompute.check_running(
            given.shape,
            actual["running_mean"],
            actual["running_var"],
            (after.running_mean, after.running_var),
            parameters,
            stats,
            x.dtype,
            unbiased=True,
        )
    return result


def _node_row(check: NodeCheck, provider: str) -> CrosscheckRow:
    node, agreement = check.node, check.agreement
    if agreement is not None and node.mode == "eval" and node.dtype is not None:
        agreement = _on_provider(agreement, provider, node.dtype.numpy())
    row = make_row("node", node.name, check.shape, provider, agreement, mode=node.mode)
    return dataclasses.replace(
        row, opset=node.opset, ok=row.ok and not check.failure, remark=check.failure or check.remark
    )


def _on_provider(agreement: Agreement, provider: str, dtype: np.dtype[Any]) -> Agreement:
    """Give a comparison of stored statistics the tolerance of the provider that computed them."""
    if CUDA not in provider:
        return agreement
    return dataclasses.replace(agreement, tolerance=in_type(EVAL_CUDA_ULP, dtype))


def _output_row(check: OutputCheck, provider: str) -> CrosscheckRow:
    row = make_row("output", check.name, check.shape, provider, check.agreement, mode=None)
    return dataclasses.replace(row, ok=row.ok and not check.failure, remark=check.failure)
