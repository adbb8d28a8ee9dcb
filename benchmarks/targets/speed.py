"""Forward and backward passes against PyTorch, oneDNN, onnxruntime and the copy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks.cases import Case, Layout
from benchmarks.machine import l2_bytes
from benchmarks.results import Result
from benchmarks.targets.base import (
    LAYOUTS,
    MEGABYTE,
    Ratio,
    Row,
    Session,
    at_least,
    at_most,
    fastest_over_cbn,
    missing,
    over,
    pairs,
)

Bar = Callable[[Case], float]

TORCH = ("torch", "torch out=")
ONEDNN = ("oneDNN NHWC", "oneDNN NCHW", "torch mkldnn")
# PyTorch has no out= that people know of, so the first line is what they gain; the others put both
# on one footing.
FOOTINGS: tuple[tuple[str, Ratio], ...] = (
    ("PyTorch as it is called", over("torch")),
    ("PyTorch, both with fresh outputs", over("torch", "cbn new")),
    ("PyTorch, both with out=", over("torch out=")),
)


def train(session: Session) -> Iterator[Row]:
    """Training forward, float32."""
    bars: dict[Layout, tuple[float, float]] = {"first": (6.0, 3.5), "last": (2.5, 1.3)}
    for layout, (mean, least) in bars.items():
        results = session.measure("train", layout, ("copy", "cbn", "cbn new", *TORCH, *ONEDNN))

        def bar(case: Case, layout: str = layout, least: float = least) -> float:
            return 1.4 if layout == "first" and case.shape == (4096, 1024) else least

        name = f"training {LAYOUTS[layout]}"
        yield from _torch_rows("train", name, results, mean, bar)
        yield at_least(
            "train",
            f"{name}: times as fast as oneDNN in NHWC, least",
            results,
            over("oneDNN NHWC"),
            lambda case: 1.0,
        )
        for measure, limit, fits in (
            ("slab of a channel in L2", 1.6, True),
            ("slab of a channel beyond L2", 2.3, False),
        ):
            yield at_most(
                "train",
                f"{name}: time over the copy's, from 16 MB, {measure}, most",
                results,
                over("cbn", "copy"),
                limit,
                lambda case, fits=fits: large(case) and slab_fits(case) == fits,
            )


def evaluate(session: Session) -> Iterator[Row]:
    """Eval forward, float32."""
    layouts: tuple[Layout, ...] = ("first", "last")
    names = ("copy", "cbn", "cbn new", *TORCH, *ONEDNN, "onnxruntime")
    for layout in layouts:
        results = session.measure("eval", layout, names)
        name = f"eval {LAYOUTS[layout]}"
        for size, limit, low, high in (
            ("from 16 MB", 1.0, 16.0, math.inf),
            ("from 1 to 16 MB", 1.3, 1.0, 16.0),
        ):
            yield at_most(
                "eval",
                f"{name}: time over the copy's, {size}, most",
                results,
                over("cbn", "copy"),
                limit,
                lambda case, low=low, high=high: low <= case.nbytes / MEGABYTE < high,
            )
        for family in ("PyTorch", "oneDNN", "onnxruntime"):
            yield at_least(
                "eval",
                f"{name}: times as fast as the fastest form of {family}, least",
                results,
                fastest_over_cbn(family),
                lambda case: 1.0,
                strict=True,
            )


def backward(session: Session) -> Iterator[Row]:
    """Backward, float32, NCHW."""
    results = session.measure("backward", "first", ("copy", "cbn", "cbn new", *TORCH))
    yield from _torch_rows("backward", "backward NCHW", results, 3.0, lambda case: 1.2)


def _torch_rows(
    group: str, name: str, results: Sequence[Result], mean: float, bar: Bar
) -> Iterator[Row]:
    for footing, ratio in FOOTINGS:
        measure = f"{name}: times as fast as {footing}"
        found = [value for _, value in pairs(results, ratio)]
        if not found:
            yield missing(group, measure)
            continue
        value = statistics.geometric_mean(found)
        yield Row(
            group, f"{measure}, geometric mean", f">= {mean:g}", f"{value:.2f}", value >= mean
        )
        yield at_least(group, f"{measure}, least", results, ratio, bar)


def large(case: Case) -> bool:
    """Whether the array is 16 MB or more."""
    return case.nbytes >= 16 * MEGABYTE


def slab_fits(case: Case) -> bool:
    """Whether the values of one channel fit in a core's second-level cache."""
    return case.nbytes / case.channels <= l2_bytes()
