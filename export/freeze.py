"""Turn nodes in training mode into nodes in eval mode, by a policy that the caller states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from .data import DataLike, batches, load_or_random
from .files import ModelError, ModelLike
from .inputs import model_inputs
from .lower import CannotLower, lower_training
from .nodes import BatchNormNode, find_nodes
from .prepare import prepare
from .rewrite import KEPT, Changes, Difference, RewriteResult, RewriteRow, drop_unused, run_rewrite
from .sessions import Providers, make_session, run_session
from .surgery import Names, Patch, is_used, store_constant

__all__ = ["Estimator", "Policy", "freeze", "to_eval"]

Policy = Literal["stored", "recalibrated", "batch"]

Estimator = Callable[[ir.Model, DataLike | None], Mapping[str, tuple[np.ndarray, np.ndarray]]]
"""Takes the model and the data, gives the mean and the population variance, both of shape (C,),
for each node by the name that ``find_nodes`` has for it."""


def freeze(
    model: ModelLike,
    policy: Policy = "stored",
    *,
    nodes: Collection[str] | None = None,
    estimator: Estimator | None = None,
    data: DataLike | None = None,
    seed: int = 0,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    prove: bool = True,
) -> RewriteResult:
    """Make a model that was exported in training mode one for inference.

    Nothing but the policy decides which statistics the model has from then on:

    - ``"stored"``: those in the file. Right for a network whose running statistics were trained
      and that was exported without ``.eval()``. A node whose statistics are still 0 and 1, as
      before any training, is refused.
    - ``"recalibrated"``: those that `estimator` finds on `data`.
    - ``"batch"``: those of each batch, on purpose, for layers that never had others
      (``track_running_stats=False``). The nodes are lowered to primitives, which run everywhere.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    policy : {"stored", "recalibrated", "batch"}, default: "stored"
    nodes : collection of str, optional
        The names of the nodes to freeze, as ``find_nodes`` gives them; all when None.
    estimator : callable, optional
        For ``"recalibrated"``: see ``Estimator``.
    data : optional
        What ``load_data`` takes: for the estimator, the proof and the comparison.
    seed, providers, num_threads
        For the proof: see ``prove``.
    prove : bool, default: True
        Whether to prove the result.

    Returns
    -------
    RewriteResult
        Its ``differences`` say how far the outputs are from those of the model before: with
        ``"stored"`` and ``"recalibrated"`` they change on purpose. The proof is against the model
        before with each frozen node spelled out in other operators, with the same statistics.

    Raises
    ------
    ModelError
        When the model cannot be read, has no BatchNormalization, none of a name in `nodes`, or
        cannot be lifted.
    ValueError
        When the policy is none of the three, or ``"recalibrated"`` without an estimator or data.

    Notes
    -----
    A model of an opset below 7 is lifted to 7 by onnx's version converter first.

    Running statistics that were outputs of the model stay outputs, and give the statistics that
    the node now normalizes with.

    Source: ONNX BatchNormalization, opset 1 to 15: ``is_test``, the count of outputs, or
    ``training_mode`` tells the mode.
    """
    if policy not in get_args(Policy):
        accepted = ", ".join(map(repr, get_args(Policy)))
        raise ValueError(f"expected policy to be one of {accepted}, got {policy!r}")
    prepared = prepare(model, nodes)
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]] = {}
    if policy == "recalibrated":
        if estimator is None or data is None:
            lacking = "an estimator" if estimator is None else "data"
            raise ValueError(
                f"policy 'recalibrated' needs {lacking}; 'stored' takes the statistics in the file"
            )
        statistics = estimator(prepared.model, data)

    def rewrite(copy: ir.Model) -> Changes:
        rows, touched = [], {}
        reference = copy.clone()
        names, twin_names = Names(copy), Names(reference)
        for norm, twin in zip(find_nodes(copy), find_nodes(reference), strict=True):
            row = _freeze_node(
                norm, twin, names, twin_names, policy, statistics, norm.name in prepared.wanted
            )
            rows.append(row)
            if row.value:
                touched[row.value] = row.value
        against = None if policy == "batch" else reference
        return Changes(rows, touched, prepared.notes, against)

    result = run_rewrite(
        prepared.model,
        rewrite,
        data=data,
        seed=seed,
        providers=providers,
        num_threads=num_threads,
        prove_it=prove,
    )
    if not result.changed:
        return result
    found, note = _differences(prepared.model, result.model, data, seed, providers, num_threads)
    return dataclasses.replace(result, differences=found, notes=(*result.notes, *note))


def _freeze_node(
    norm: BatchNormNode,
    twin: BatchNormNode,
    names: Names,
    twin_names: Names,
    policy: Policy,
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]],
    wanted: bool,
) -> RewriteRow:
    if norm.mode == "eval":
        return RewriteRow(norm.name, KEPT, reason="it is in eval mode already")
    if not wanted:
        return RewriteRow(norm.name, KEPT, reason="not asked for")
    value = "" if norm.path else str(norm.node.outputs[0].name)
    try:
        if policy == "batch":
            lower_training(norm, names)
            action = "keeps the batch's statistics, lowered to primitives"
            return RewriteRow(norm.name, action, value=value)
        _require_one_meaning(norm)
        if policy == "recalibrated":
            _give(norm, names, statistics)
            _give(twin, twin_names, statistics)
        else:
            _require_trained(norm)
        _spell_out(twin, twin_names)
        to_eval(norm, names)
    except CannotLower as reason:
        return RewriteRow(norm.name, KEPT, ok=False, reason=str(reason))
    return RewriteRow(norm.name, f"frozen with {policy} statistics", value=value)


def _require_one_meaning(norm: BatchNormNode) -> None:
    if norm.by_reference:
        raise CannotLower(f"the function's caller sets {', '.join(norm.by_reference)}")
    if norm.rank is None:
        raise CannotLower("the rank of its input is not known")
    if not norm.spatial and norm.rank != 2:
        raise CannotLower("statistics per activation (spatial=0): lower the model")
    if len(norm.node.inputs) != 5 or any(value is None for value in norm.node.inputs):
        raise CannotLower("it lacks inputs")


def _require_trained(norm: BatchNormNode) -> None:
    mean, var = norm.mean.array, norm.var.array
    if mean is None or var is None:
        return
    if norm.untouched:
        raise CannotLower(
            "its stored statistics are untouched (mean 0, var 1), so it was never trained or never "
            "kept any: choose policy 'batch', or 'recalibrated' with data"
        )
    finite = np.isfinite(mean).all() and np.isfinite(var).all()
    if not finite or norm.bad_channels.any():
        raise CannotLower(
            "its stored statistics cannot be normalized with: var + epsilon <= 0, NaN or infinity"
        )


def _give(
    norm: BatchNormNode, names: Names, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Replace the stored statistics of a node by estimated ones."""
    if norm.name not in statistics:
        raise CannotLower("the estimator gave no statistics for it")
    channels = norm.num_features
    old = list(norm.node.inputs[3:5])
    for index, array in zip((3, 4), statistics[norm.name], strict=True):
        if channels is not None and np.shape(array) != (channels,):
            raise CannotLower(
                f"the estimator gave statistics of shape {np.shape(array)}, expected ({channels},)"
            )
        value = norm.node.inputs[index]
        dtype = value.dtype if value is not None and value.dtype else ir.DataType.FLOAT
        name = names.new(f"{norm.node.name or norm.name}/{'mean' if index == 3 else 'var'}")
        graph = norm.node.graph
        if not isinstance(graph, ir.Graph):
            raise CannotLower("it is inside a function")
        stored = store_constant(graph, np.asarray(array).astype(dtype.numpy()), name)
        norm.node.replace_input_with(index, stored)
    drop_unused(old)


def to_eval(norm: BatchNormNode, names: Names) -> None:
    """Set the mode, and give what the other outputs were: the statistics in use."""
    node = norm.node
    for index, output in enumerate(node.outputs):
        if index and is_used(output):
            source = node.inputs[3 if index % 2 else 4]
            name = str(output.name)
            stored = ir.node("Identity", [source], name=names.new(f"{name}/Identity"))
            output.replace_all_uses_with(stored.outputs[0], replace_graph_outputs=True)
            stored.outputs[0].name = name
            stored.outputs[0].type, stored.outputs[0].shape = output.type, output.shape
            output.name = names.new(f"{name}/unused")
            assert node.graph is not None
            node.graph.insert_after(node, stored)
    node.resize_outputs(1)
    node.attributes.pop("training_mode", None)
    if norm.version.mode_from == "is_test":
        node.attributes["is_test"] = ir.AttrInt64("is_test", 1)


def _spell_out(twin: BatchNormNode, names: Names) -> None:
    """Write the same node in eval mode as Sub, Add, Sqrt, Div, Mul, Add: for the proof."""
    node = twin.node
    patch = Patch(node, names)
    assert twin.rank is not None
    column = patch.constant(np.array([-1, *[1] * (twin.rank - 2)]), "column")
    x = node.inputs[0]
    declared = None if node.inputs[1] is None else node.inputs[1].dtype
    kind = twin.dtype or declared or ir.DataType.FLOAT
    scale, bias, mean, var = (
        patch.op("Cast", [patch.op("Reshape", [value, column])], {"to": kind.value})
        for value in node.inputs[1:5]
    )
    eps = patch.constant(np.asarray(twin.eps, kind.numpy()), "eps")
    deviation = patch.op("Sqrt", [patch.op("Add", [var, eps])])
    scaled = patch.op("Div", [patch.op("Sub", [x, mean]), deviation])
    y = patch.op("Add", [patch.op("Mul", [scaled, scale]), bias])
    outputs: list[ir.Value | None] = [y]
    for index, output in enumerate(node.outputs[1:], 1):
        kept = is_used(output)
        outputs.append(patch.op("Identity", [node.inputs[3 if index % 2 else 4]]) if kept else None)
    patch.replace(outputs)


def _differences(
    before: ir.Model,
    after: ir.Model,
    data: DataLike | None,
    seed: int,
    providers: Providers,
    num_threads: int | None,
) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
    """Run both models and say how far the outputs moved; a note where they cannot be run."""
    inputs = model_inputs(before)
    try:
        feeds, words = load_or_random(before, data, seed)
        sessions = [
            make_session(model, providers, optimize=False, num_threads=num_threads)
            for model in (before, after)
        ]
        pairs = [
            [run_session(session, part) for session in sessions] for part in batches(feeds, inputs)
        ]
    except ModelError as error:
        return (), (f"the outputs before and after were not compared: {error}",)
    found = tuple(
        Difference.between(name, [old[name] for old, _ in pairs], [new[name] for _, new in pairs])
        for name in pairs[0][0]
    )
    text = "; ".join(str(difference) for difference in found)
    return found, (
        f"outputs and those of the model before, on {words}: {text} (the proof is against the "
        "model before with the same statistics)",
    )
