"""Run the BatchNormalization nodes of a model in onnxruntime and compare each with cbn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

import cbn

from . import recompute
from .inputs import Feeds
from .nodes import BatchNormNode
from .sessions import Providers, make_session, provider_in_use, run_session
from .taps import expose
from .tolerance import Agreement

__all__ = ["NodeCheck", "check_nodes"]

# Values of some nodes are taken out of one run; this bounds what they hold in memory at once.
_TAPPED_BYTES = 256 << 20

# Rounding that moves outputs by more than this part of their largest is worth a remark.
_LARGE_ERROR = 1e-2

_PARAMETERS = ("scale", "bias", "mean", "var")


@dataclasses.dataclass(frozen=True)
class NodeCheck:
    """What was found for one node.

    Attributes
    ----------
    node : BatchNormNode
    shape : tuple of int, or None
        Of its input in the first batch.
    agreement : Agreement or None
        The worst of its outputs and batches; None where nothing could be compared.
    failure : str
        Why it does not hold, whatever the numbers say; empty otherwise.
    remark : str
        Which of several outputs the numbers belong to.
    """

    node: BatchNormNode
    shape: tuple[int, ...] | None = None
    agreement: Agreement | None = None
    failure: str = ""
    remark: str = ""


def check_nodes(
    model: ir.Model,
    nodes: Sequence[BatchNormNode],
    parts: Sequence[Feeds],
    providers: Providers,
    num_threads: int | None,
) -> tuple[list[NodeCheck], str]:
    """Compare each node with cbn, over all batches; also tell the execution provider.

    The nodes are taken in groups whose inputs and outputs are tapped in one run, so that memory
    stays bounded whatever their number.
    """
    results = {node.name: NodeCheck(node, failure=_unreachable(node)) for node in nodes}
    reachable = [node for node in nodes if not results[node.name].failure]
    shapes, provider = _input_shapes(model, reachable, parts[0], providers, num_threads)
    for node in reachable:
        results[node.name] = NodeCheck(node, shapes[node.name])
    for group in _groups(reachable, shapes):
        wanted = [name for node in group for name in _values(node)]
        tapped, outputs = expose(model, wanted)
        session = make_session(tapped, providers, optimize=False, num_threads=num_threads)
        names = list(dict.fromkeys(outputs.values()))
        twice = any(node.mode == "training" for node in group)
        for feeds in parts:
            values = run_session(session, feeds, names)
            again = run_session(session, feeds, names) if twice else values
            for node in group:
                if not results[node.name].failure:
                    first = {name: values[outputs[name]] for name in _values(node)}
                    second = {name: again[outputs[name]] for name in _values(node)}
                    results[node.name] = _compare(results[node.name], first, second, num_threads)
    return [results[node.name] for node in nodes], provider


def _unreachable(node: BatchNormNode) -> str:
    if node.path:
        return (
            f"not checked: it is inside {' / '.join(node.path)}, whose values cannot be taken out"
        )
    if not node.spatial:
        return "not checked: spatial=0, statistics per activation, which cbn does not compute"
    if len(node.node.inputs) != 5 or None in node.node.inputs:
        return f"not checked: {len(node.node.inputs)} inputs, expected X, scale, B, mean and var"
    return ""


def _input_shapes(
    model: ir.Model,
    nodes: Sequence[BatchNormNode],
    feeds: Feeds,
    providers: Providers,
    num_threads: int | None,
) -> tuple[dict[str, tuple[int, ...]], str]:
    """Ask onnxruntime for the shape of each node's input: it needs next to no memory."""
    inputs = {node.name: _name(node.node.inputs[0]) for node in nodes}
    tapped, outputs = expose(model, inputs.values(), shapes_only=True)
    session = make_session(tapped, providers, optimize=False, num_threads=num_threads)
    shapes = run_session(session, feeds, list(outputs.values())) if outputs else {}
    found = {node: tuple(map(int, shapes[outputs[name]])) for node, name in inputs.items()}
    return found, provider_in_use(session, "BatchNormalization")


def _groups(
    nodes: Sequence[BatchNormNode], shapes: dict[str, tuple[int, ...]]
) -> Iterator[list[BatchNormNode]]:
    group: list[BatchNormNode] = []
    held = 0
    for node in nodes:
        width = math.ceil(node.dtype.itemsize) if node.dtype is not None else 4
        runs = 2 if node.mode == "training" else 1
        size = 2 * runs * width * math.prod(shapes[node.name])
        if group and held + size > _TAPPED_BYTES:
            yield group
            group, held = [], 0
        group.append(node)
        held += size
    if group:
        yield group


def _values(node: BatchNormNode) -> list[str]:
    """Name what is taken out: X, the parameters that the model does not fix, and the results."""
    inputs = [
        value
        for key, value in zip(("x", *_PARAMETERS), node.node.inputs, strict=True)
        if key == "x" or not node.parameters[key].known
    ]
    results = node.node.outputs[: 3 if node.mode == "training" else 1]
    return [name for value in (*inputs, *results) if (name := _name(value))]


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _compare(
    so_far: NodeCheck,
    values: dict[str, np.ndarray],
    again: dict[str, np.ndarray],
    num_threads: int | None,
) -> NodeCheck:
    node = so_far.node
    inputs, results = node.node.inputs, node.node.outputs
    x = values[_name(inputs[0])]
    constants: dict[str, np.ndarray] = {}
    for key, value in zip(_PARAMETERS, inputs[1:], strict=True):
        array = node.parameters[key].array
        constants[key] = values[_name(value)] if array is None else array
    parameters = recompute.Parameters(**constants, eps=node.eps, momentum=node.momentum)
    y = values[_name(results[0])]
    try:
        if node.mode == "eval":
            expected = recompute.eval_output(x, parameters, num_threads)
            found = {"Y": recompute.check_eval(x, y, expected, parameters)}
        else:
            found = _compare_training(node, x, y, values, parameters, num_threads)
    except (ValueError, TypeError) as error:
        return dataclasses.replace(so_far, failure=f"not checked: cbn refuses it: {error}")
    name = max(found, key=lambda key: found[key].ratio)
    agreement = found[name]
    for other in found.values():
        agreement = recompute.worst(agreement, other)
    remark = "" if name == "Y" else f"the worst is {name}"
    if found["Y"].ok and found["Y"].max_abs_error > _LARGE_ERROR * np.abs(y).max(initial=0):
        remark = (
            "the error is rounding, but large against the output: the mean is many deviations "
            "from 0, where the order of onnxruntime's arithmetic loses digits"
        )
    if so_far.agreement is not None:
        joined = recompute.worst(so_far.agreement, agreement)
        if joined.ratio == so_far.agreement.ratio:
            remark = so_far.remark
        agreement = joined
    failure = ""
    if values is not again and _hidden_state(_name(inputs[0]), values, again):
        failure = (
            "two runs on the same input differ: onnxruntime overwrites what the node reads, as it "
            "does with shared initializers in training mode (onnxruntime#29790)"
        )
    return dataclasses.replace(so_far, agreement=agreement, remark=remark, failure=failure)


def _compare_training(
    node: BatchNormNode,
    x: np.ndarray,
    y: np.ndarray,
    values: dict[str, np.ndarray],
    parameters: recompute.Parameters,
    num_threads: int | None,
) -> dict[str, Agreement]:
    # NaN and infinities go their way through sums and differences without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        wide = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
        stats = cbn.batch_stats(wide, axis=1, num_threads=num_threads)
        expected = recompute.training_output(x, parameters, num_threads)
        found = {"Y": recompute.check_training(x, y, expected, parameters, stats)}
        names = [value.name or "" for value in node.node.outputs[1:3]]
        mean, var = (values.get(name) for name in (*names, "", "")[:2])
        return found | recompute.check_running(
            x.shape,
            mean,
            var,
            recompute.running_statistics(stats, parameters),
            parameters,
            stats,
            wide.dtype,
        )


def _hidden_state(x: str, values: dict[str, np.ndarray], again: dict[str, np.ndarray]) -> bool:
    """Whether the same input gave two results; another input is not this node's doing."""
    same = {name: np.array_equal(values[name], again[name], equal_nan=True) for name in values}
    return same[x] and not all(same.values())
