"""Prove that a rewritten model computes what the model before it does, up to rounding.

The measure is a float64 evaluation of the model before (``cbn.export.float64``). Two questions are
asked of every output and of every intermediate value that the rewrite names:

- Is the rewrite right? Its own float64 evaluation may differ from that of the model before only by
  what rounding its new weights can do. How much that is, is measured: the weights of the model
  before are moved by the rounding of their type, some times, and the largest effect counts.
- Is it as precise when it runs? onnxruntime's results, with optimization off and on, may be away
  from the float64 evaluation by a small multiple of what the model before is.

The first question is asked of each channel (axis 1 of a value of rank 2 or more) against its own
size: what rounding does to it is what was measured there or, if more, what it usually does to the
channels of the value, up to 16 times their median part of this one's size. The second is asked of
each value as a whole. So a rounding-level difference passes however deep the network, and a rewrite
that is wrong in one small channel fails beside large ones. What can hide: a difference within eight
times the rounding of weights so measured; one in channels that the values compared do not have on
axis 1; and, where there is no float64 evaluation, one that is small against the largest number of
the whole value.

What no input reaches shows in no output. A branch of an If that the rewrite changed is therefore
taken in any case too, with the outputs compared again. Branches inside Loop and Scan are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from .branches import Branch, changed_branches, force
from .data import DataLike, batches, load_or_random
from .evaluation import Bench, Value
from .files import ModelError, ModelLike, load
from .inputs import Feeds, model_inputs
from .proof_report import ProofReport, ProofRow
from .results import counted
from .sessions import Providers, make_session, run_session
from .surgery import inline_functions, value_names
from .tolerance import output_ulp, ulp

__all__ = ["ProofReport", "ProofRow", "prove"]

MOST_SAMPLES = 256
"""Of the user's data, as many samples are used at most."""

MOST_BRANCHES = 8
"""Of the changed branches of If nodes, as many are taken in any case at most."""

# What the rounding of new weights may do, in units of what was measured: a handful of measurements
# of a maximum, which may be unlucky, and folded weights that carry some roundings of their origins.
_WEIGHT_FACTOR = 8

# Two roundings of a result, and of the reference, at the size of the largest value.
_FLOOR_ULP = 4

# How much worse than the model before its rewrite may run, where rounding is not the smaller bound.
_RUN_FACTOR = 4

# The same where the model before is itself far off when it runs, as beside a saturated Sigmoid.
_UNSURE_FACTOR = 2

# How much smaller than its terms a channel is taken to be at most, beside the median channel.
_CANCELLED = 16

_LARGEST_PART = 1 / 64  # of the largest value: no error that size is rounding


def prove(
    before: ModelLike,
    after: ModelLike,
    data: DataLike | None = None,
    *,
    seed: int = 0,
    providers: Providers = "cpu",
    touched: Mapping[str, str] | None = None,
    num_threads: int | None = None,
) -> ProofReport:
    """Compare a rewritten model with the one before it.

    Parameters
    ----------
    before, after : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The models; they are not changed. Outputs are paired by their order.
    data : optional
        What ``load_data`` takes, of which the first 256 samples are used; seeded random inputs
        when None.
    seed : int, default: 0
        Of the random inputs.
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
        As for ``make_session``. The float64 evaluations always run on the CPU.
    touched : mapping of str to str, optional
        Values of the main graph before, each with the value of the main graph after that must be
        equal to it.
    num_threads : int, optional
        For onnxruntime.

    Returns
    -------
    ProofReport
        False too when no proof could be made: the models take or give different things, or a run
        fails. ``failure`` says so.

    Raises
    ------
    DataError
        When the data cannot be read or does not fit.
    ProviderError
        When a provider that was asked for is not in use.
    ModelError
        When a model cannot be read or loaded by onnxruntime, no random inputs can be made, or
        `touched` names a value that the main graph lacks.

    Notes
    -----
    Where no float64 evaluation is possible (more than 512 MiB of weights, operators of other
    domains whose results float64 would change the type of), the reference is the model before as
    onnxruntime runs it with optimization off, and the budget is the tolerance that ``crosscheck``
    has for the outputs of a model. Where a model cannot be run in its own type on this provider
    (bfloat16 on the CPU), its float64 evaluation alone is what the one after is measured against,
    which runs if it can. A remark says either.
    """
    old, new = inline_functions(load(before)), inline_functions(load(after))
    inputs = model_inputs(old)
    values = _pairs(old, new, touched or {})
    for model, names in ((old, touched or {}), (new, (touched or {}).values())):
        missing = sorted(set(names) - value_names(model.graph))
        if missing:
            raise ModelError(f"the main graph of the model has no value {missing[0]!r}")
    feeds, words = load_or_random(old, data, seed)
    failure = _mismatch(old, new)
    if failure:
        return ProofReport((), inputs=words, failure=failure)
    parts = _first(batches(feeds, inputs), MOST_SAMPLES)
    bench = Bench(old, new, providers, num_threads)
    if bench.failure:
        return ProofReport((), words, bench.reference, failure=bench.failure)
    try:
        waiting = [value for value in values if value.kind == "output"]
        inner = [value for value in values if value.kind == "intermediate"]
        for group, few in bench.groups(inner, parts):
            if waiting and len(few) == len(parts):  # one run for both
                group, waiting = [*waiting, *group], []
            bench.compare(group, few)
        bench.compare(waiting, parts)
    except ModelError as error:
        advice = "" if data is not None else "; the inputs are random: give data that fits"
        return ProofReport((), words, bench.reference, failure=f"{error}{advice}")
    rows = [_judge(value, bench) for value in values]
    branches = changed_branches(old, new)
    for branch in branches[:MOST_BRANCHES]:
        rows += _force(branch, old, new, parts, providers, num_threads)
    if left := len(branches[MOST_BRANCHES:]):
        many = f"{counted(left, 'more changed branch')} of If nodes"
        value = dataclasses.replace(values[0], kind="forced")
        rows.append(_unjudged(value, f"not compared: {many}", ok=True))
    return ProofReport(tuple(rows), words, bench.reference)


def _force(
    branch: Branch,
    old: ir.Model,
    new: ir.Model,
    parts: list[Feeds],
    providers: Providers,
    num_threads: int | None,
) -> list[ProofRow]:
    """Compare the outputs where a branch that the inputs may not reach is taken in any case."""
    values = [dataclasses.replace(v, kind="forced") for v in _pairs(old, new, {})]
    old, new = force(old, branch), force(new, branch)
    try:
        bench = Bench(old, new, providers, num_threads)
        if bench.failure:
            raise ModelError(bench.failure)
        bench.compare(values, parts)
        rows = [_judge(value, bench) for value in values]
    except ModelError as error:
        ok = not _runs(old, parts, providers, num_threads)
        rows = [_unjudged(values[0], f"not compared: {error}", ok=ok)]
    else:
        # Nothing says that the model is ever to take this branch on such inputs.
        rows = [
            dataclasses.replace(row, ok=row.ok or not value.finite)
            for row, value in zip(rows, values, strict=True)
        ]
    return [
        dataclasses.replace(
            row, remark=f"{branch} taken in any case" + (f": {row.remark}" if row.remark else "")
        )
        for row in rows
    ]


def _runs(
    model: ir.Model, parts: list[Feeds], providers: Providers, num_threads: int | None
) -> bool:
    try:
        session = make_session(model, providers, optimize=False, num_threads=num_threads)
        for feeds in parts:
            run_session(session, feeds)
    except ModelError:
        return False
    return True


def _judge(value: Value, bench: Bench) -> ProofRow:
    if value.incomparable:
        return _unjudged(value, "not compared: it is a sequence or map, not a tensor")
    if not value.finite:
        return _unjudged(value, "not compared: it holds no finite number; give data")
    dtype = value.dtype if value.dtype is not None else np.dtype(np.float32)
    exact = dtype.kind not in "fV"
    spread, difference, moved = value.spreads()
    unit = np.zeros(1)
    if not exact:
        unit = ulp(spread, dtype if dtype.kind == "f" else np.dtype(np.float32))
        moved = np.maximum(moved, _usual(moved, spread))
    budgets = (1 if exact else _WEIGHT_FACTOR) * moved + _FLOOR_ULP * unit
    worst = _worst(difference, budgets)
    apart, budget = float(difference[worst]), float(budgets[worst])
    right = apart <= budget
    largest = float(spread.max())
    # Precision is a matter of the whole value: what one channel loses when it runs is chance.
    run_floor = 0.0 if exact else output_ulp(bench.calculating, dtype) * float(unit.max())
    worse = _RUN_FACTOR * value.error_before
    usable = not value.unstable and (exact or worse <= largest * _LARGEST_PART)
    error_budget = float(budgets.max()) + max(run_floor, worse if usable else 0.0)
    if right and not value.unstable:
        error_budget = max(error_budget, _UNSURE_FACTOR * value.error_before)
    runs = not bench.runs["after"] or value.error <= error_budget
    remark = value.failure
    if not right:
        where = f" in channel {worst}" if difference.size > 1 else ""
        remark = (
            f"it computes something else: {apart:.2e} away in float64{where}, where the "
            f"rounding of weights explains {budget:.2e}"
        )
    elif not runs and not remark:
        remark = (
            f"right in float64, but {value.error:.2e} away when it runs, where the model before "
            + (f"is {value.error_before:.2e} away" if bench.runs["before"] else "does not run")
        )
    elif not remark and value.unstable:
        remark = "two runs of the model before differ on the same input (onnxruntime#29790)"
    elif not remark and not exact and not largest:
        remark = "little is proved: it is 0 throughout"
    elif not remark and float(moved.max()) > largest * _LARGEST_PART:
        remark = "little is proved: rounding alone moves this value that much"
    wide = bench.narrow is not None
    return ProofRow(
        kind=value.kind,
        name=value.before,
        shape=value.shape,
        largest=largest,
        difference=apart if wide else None,
        budget=budget if wide else None,
        error=value.error if bench.runs["after"] else None,
        error_before=value.error_before if bench.runs["before"] else None,
        error_budget=error_budget if bench.runs["after"] else None,
        ok=right and runs and not value.failure,
        remark=remark,
    )


def _unjudged(value: Value, remark: str, *, ok: bool = False) -> ProofRow:
    nothing = (None,) * 6
    return ProofRow(value.kind, value.before, value.shape, *nothing, ok=ok, remark=remark)


def _usual(moved: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """What rounding usually moves a channel of such a size by, from the medians of all channels.

    A channel may be a handful of numbers that no measurement happened to move, or that are small
    because large terms cancel: it may move as the median channel does, but not by too much of
    its own size.
    """
    seen = (largest > 0) & np.isfinite(moved)
    if not seen.any():
        return np.zeros_like(moved)
    part = np.median(moved[seen] / largest[seen])
    most = max(part, min(_CANCELLED * part, _LARGEST_PART / _WEIGHT_FACTOR))
    return np.asarray(np.minimum(np.median(moved[seen]), most * largest))


def _worst(difference: np.ndarray, budgets: np.ndarray) -> int:
    """The channel whose difference is the largest part of its budget."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(difference == 0, 0.0, difference / budgets)
    return int(np.argmax(parts))


def _pairs(old: ir.Model, new: ir.Model, touched: Mapping[str, str]) -> list[Value]:
    pairs = zip(old.graph.outputs, new.graph.outputs, strict=False)
    found = [Value("output", str(a.name), str(b.name)) for a, b in pairs]
    outputs = {value.before for value in found}
    return found + [
        Value("intermediate", before, after)
        for before, after in touched.items()
        if before not in outputs
    ]


def _mismatch(old: ir.Model, new: ir.Model) -> str:
    """Say what differs between what the models take and give, if anything does."""
    for what, first, second in (
        ("takes", [i.name for i in model_inputs(old)], [i.name for i in model_inputs(new)]),
        ("gives", [o.name for o in old.graph.outputs], [o.name for o in new.graph.outputs]),
    ):
        if first != second:
            return f"the model before {what} {first}, the one after {second}"
    return ""


def _first(parts: Iterator[Feeds], samples: int) -> list[Feeds]:
    chosen: list[Feeds] = []
    total = 0
    for feeds in parts:
        chosen.append(feeds)
        total += max((len(a) if a.ndim else 1 for a in feeds.values()), default=1)
        if total >= samples:
            break
    return chosen
