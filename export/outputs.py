"""The outputs of a model, between onnxruntime's graph optimization off and on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .inputs import Feeds
from .recompute import worst
from .sessions import Providers, make_session, run_session
from .tolerance import Agreement, compare, output_ulp

__all__ = ["OutputCheck", "check_outputs"]

# They hold or tell shapes of values, and calculate nothing.
_SILENT = frozenset(
    {
        "Constant",
        "ConstantOfShape",
        "Shape",
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "Concat",
        "Split",
    }
)

# Kernels compute these as 1/2 plus something, so that near 0 the error is an ULP of 1/2.
_CENTRED = frozenset({"Sigmoid", "HardSigmoid"})

_UNSTABLE = (
    "two runs on the same input differ: a random operator, or onnxruntime overwrites initializers "
    "that nodes in training mode share (onnxruntime#29790)"
)


@dataclasses.dataclass(frozen=True)
class OutputCheck:
    """What was found for one output of the model.

    Attributes
    ----------
    name : str
    shape : tuple of int, or None
        In the first batch; None for what is no tensor.
    agreement : Agreement or None
        The worst of all batches, in ULP of the largest value of the output in that batch; for
        integers, booleans and text, infinite unless all are equal.
    failure : str
        Why it does not hold, whatever the numbers say; empty otherwise.
    """

    name: str
    shape: tuple[int, ...] | None
    agreement: Agreement | None
    failure: str = ""


def check_outputs(
    model: ir.Model,
    parts: Sequence[Feeds],
    providers: Providers,
    num_threads: int | None,
    *,
    repeat: bool,
) -> list[OutputCheck]:
    """Compare each output over all batches; with `repeat` each run is done twice.

    Two runs of one session on the same input must give the same bits.
    """
    plain, optimized = (
        make_session(model, providers, optimize=optimize, num_threads=num_threads)
        for optimize in (False, True)
    )
    calculating = sum(node.op_type not in _SILENT for node in model.graph)
    centred = {value.name for value in model.graph.outputs if _source_type(value) in _CENTRED}
    results: dict[str, OutputCheck] = {}
    for feeds in parts:
        before, after = run_session(plain, feeds), run_session(optimized, feeds)
        for name in before:
            floor = 0.5 if name in centred else 0.0
            check = _compare(name, before[name], after[name], calculating, floor)
            results[name] = _join(results[name], check) if name in results else check
        if repeat:
            for session, first in ((plain, before), (optimized, after)):
                second = run_session(session, feeds)
                for name in first:
                    if not _same(first[name], second[name]):
                        results[name] = dataclasses.replace(results[name], failure=_UNSTABLE)
    return list(results.values())


def _source_type(value: ir.Value) -> str:
    """Name the operator that an output's values come from, through those that only move them."""
    node = value.producer()
    while node is not None and node.op_type in _SILENT and node.inputs:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return "" if node is None else node.op_type


def _compare(name: str, before: Any, after: Any, nodes: int, floor: float) -> OutputCheck:
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
        return OutputCheck(name, None, None, "not checked: it is a sequence or map, not a tensor")
    if before.dtype.kind == "f":
        finite = before[np.isfinite(before)]
        largest = max(float(np.abs(finite).max(initial=0)), floor)
        agreement = compare(after, before, largest, output_ulp(nodes, before.dtype))
        return OutputCheck(name, before.shape, agreement)
    if before.shape != after.shape or before.dtype != after.dtype:
        return OutputCheck(name, before.shape, Agreement(math.inf, math.inf, 0.0))
    differing = int(np.count_nonzero(before != after))
    error = math.inf if differing else 0.0
    if differing and before.dtype.kind in "iu":
        error = float(np.abs(before.astype(np.float64) - after.astype(np.float64)).max())
    text = f"{differing} of {before.size} values differ" if differing else ""
    return OutputCheck(
        name, before.shape, Agreement(error, math.inf if differing else 0.0, 0.0), text
    )


def _join(first: OutputCheck, second: OutputCheck) -> OutputCheck:
    if first.agreement is None or second.agreement is None:
        return first
    return dataclasses.replace(
        first,
        agreement=worst(first.agreement, second.agreement),
        failure=first.failure or second.failure,
    )


def _same(first: Any, second: Any) -> bool:
    if not isinstance(first, np.ndarray) or not isinstance(second, np.ndarray):
        return True  # reported as not checked already
    nan = first.dtype.kind == "f"
    return bool(np.array_equal(first, second, equal_nan=nan))
