"""One case, every contender."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence

from benchmarks.accuracy import Reference
from benchmarks.cases import Case, make_data
from benchmarks.load import Neighbours, is_busy
from benchmarks.measure import Statement, Timing, measure
from benchmarks.peers import CONTENDERS, Contender, Unsupported
from benchmarks.results import Result

RETRY_SECONDS = 2.0


def installed(names: Sequence[str] | None = None) -> list[type[Contender]]:
    """Return the contenders that are installed, or of them those that are named."""
    return [
        kind for kind in CONTENDERS if (names is None or kind.name in names) and kind.installed()
    ]


def run(
    case: Case,
    kinds: Sequence[type[Contender]],
    rounds: int,
    mean: float = 0.0,
    deviation: float = 1.0,
    accuracy: bool = True,
    retries: int = 0,
) -> Result:
    """Measure the case with those of the contenders that take it.

    Where other processes were busy meanwhile it is measured again, up to ``retries`` times, and
    the quietest of the measurements counts.
    """
    progress(case)
    data = make_data(case, mean, deviation)
    contenders: dict[str, Contender] = {}
    calls: dict[str, Statement] = {}
    for kind in kinds:
        if kind.takes(case):
            contender = kind(case, data)
            try:
                calls[kind.name] = contender.prepare()
            except Unsupported:
                continue
            contenders[kind.name] = contender
    timings, busy = _measure_quietly(calls, rounds, retries)
    errors = {}
    if accuracy:
        reference = Reference(case, data)
        errors = {
            name: reference.max_ulp(contender.output(), contender.own_statistics)
            for name, contender in contenders.items()
            if contender.computes
        }
    kernels = {name: contender.kernel for name, contender in contenders.items() if contender.kernel}
    del calls, contenders, data
    gc.collect()  # before the next case's arrays come
    return Result(case, timings, errors, kernels, busy)


def _measure_quietly(
    calls: dict[str, Statement], rounds: int, retries: int
) -> tuple[dict[str, Timing], float | None]:
    best: tuple[dict[str, Timing], float | None] | None = None
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(RETRY_SECONDS)
        neighbours = Neighbours()
        timings = measure(calls, rounds)
        share = neighbours.share()
        if best is None or (share or 0) < (best[1] or 0):
            best = timings, share
        if not is_busy(share):
            break
    assert best is not None
    return best


def progress(what: object) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[Kmeasuring {what} ...", end="\r", file=sys.stderr, flush=True)
