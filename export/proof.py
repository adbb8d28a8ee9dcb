"""Prove that a rewritten model computes what the model before it does, up to rounding.

The measure is a float64 evaluation of the model before (``cbn.export.float64``). Two questions are
asked of every output and of every intermediate value that the rewrite names:

- Is the rewrite right? Its own float64 evaluation may differ from that of the model before only by
  what rounding its new weights can do. How much that is, is measured: the weights of the model
  before are moved by the rounding of their type, some times, and the largest effect counts.
- Is it as precise when it runs? onnxruntime's results, with optimization off and on, may be away
  from the float64 evaluation by a small multiple of what the model before is.

So a rounding-level difference passes however deep the network, and a wrong rewrite fails however
small its effect: it has nothing to hide behind but float32's rounding of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from .data import DataLike, batches, load_data
from .evaluation import Bench, Value
from .files import ModelError, ModelLike, load
from .inputs import Feeds, model_inputs, random_inputs
from .proof_report import ProofReport, ProofRow
from .sessions import Providers
from .surgery import inline_functions, value_names
from .tolerance import output_ulp, ulp

__all__ = ["ProofReport", "ProofRow", "prove"]

MOST_SAMPLES = 256
"""Of the user's data, as many samples are used at most."""

# What the rounding of new weights may do, in units of what was measured: a handful of measurements
# of a maximum, which may be unlucky, and folded weights that carry some roundings of their origins.
_WEIGHT_FACTOR = 8

# Two roundings of a result, and of the reference, at the size of the largest value.
_FLOOR_ULP = 4

# How much worse than the model before its rewrite may run, where rounding is not the smaller bound.
_RUN_FACTOR = 4

# The same where the model before is itself far off when it runs, as beside a saturated Sigmoid.
_UNSURE_FACTOR = 2

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
    (bfloat16 on the CPU), the float64 evaluation alone is compared. A remark says either.
    """
    old, new = inline_functions(load(before)), inline_functions(load(after))
    inputs = model_inputs(old)
    values = _pairs(old, new, touched or {})
    for model, names in ((old, touched or {}), (new, (touched or {}).values())):
        missing = sorted(set(names) - value_names(model.graph))
        if missing:
            raise ModelError(f"the main graph of the model has no value {missing[0]!r}")
    if data is not None:
        feeds, words = load_data(data, inputs), "the given data"
    else:
        words = f"random inputs (seed {seed})"
        feeds = random_inputs(old, seed)
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
    rows = tuple(_judge(value, bench) for value in values)
    return ProofReport(rows, words, bench.reference)


def _judge(value: Value, bench: Bench) -> ProofRow:
    if value.incomparable:
        return _row(value, None, None, False, "not compared: it is a sequence or map, not a tensor")
    if not value.finite:
        return _row(value, None, None, False, "not compared: it holds no finite number; give data")
    dtype = value.dtype if value.dtype is not None else np.dtype(np.float32)
    exact = dtype.kind not in "fV"
    unit = (
        0.0
        if exact
        else float(ulp(value.largest, dtype if dtype.kind == "f" else np.dtype(np.float32)))
    )
    run_floor = 0.0 if exact else output_ulp(bench.calculating, dtype) * unit
    factor = 1 if exact else _WEIGHT_FACTOR
    budget = factor * value.moved + _FLOOR_ULP * unit
    right = value.difference <= budget
    worse = _RUN_FACTOR * value.error_before
    usable = not value.unstable and (exact or worse <= value.largest * _LARGEST_PART)
    error_budget = budget + max(run_floor, worse if usable else 0.0)
    runs = not bench.runs_as_written or value.error <= error_budget
    if not runs and right and not value.unstable:
        runs = value.error <= _UNSURE_FACTOR * value.error_before
    remark = value.failure
    if not right:
        remark = (
            f"it computes something else: {value.difference:.2e} away in float64, where the "
            f"rounding of weights explains {budget:.2e}"
        )
    elif not runs and not remark:
        remark = (
            f"right in float64, but {value.error:.2e} away when it runs, where the model before "
            f"is {value.error_before:.2e} away"
        )
    elif not remark and value.unstable:
        remark = "two runs of the model before differ on the same input (onnxruntime#29790)"
    elif not remark and not exact and not value.largest:
        remark = "little is proved: it is 0 throughout"
    elif not remark and value.moved > value.largest * _LARGEST_PART:
        remark = "little is proved: rounding alone moves this value that much"
    ok = right and runs and not value.failure
    return _row(value, budget, error_budget, ok, remark, bench)


def _row(
    value: Value,
    budget: float | None,
    error_budget: float | None,
    ok: bool,
    remark: str,
    bench: Bench | None = None,
) -> ProofRow:
    wide = bench is not None and bench.narrow is not None
    run = bench is not None and bench.runs_as_written
    return ProofRow(
        kind=value.kind,
        name=value.before,
        shape=value.shape,
        largest=value.largest if bench is not None else None,
        difference=value.difference if wide else None,
        budget=budget if wide else None,
        error=value.error if run else None,
        error_before=value.error_before if run else None,
        error_budget=error_budget if run else None,
        ok=ok,
        remark=remark,
    )


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
