"""Timing: contenders take turns, so that what the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
import timeit
from collections.abc import Callable, Mapping

SAMPLE_SECONDS = 2e-3  # a sample repeats short calls until about this long
PAUSE_SECONDS = 5e-3  # lets the idle threads of the contender before stop spinning


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds a call: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


def measure(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time each call in every round, in a new order each time, after one call that is not timed."""
    timers = {name: timeit.Timer(call) for name, call in calls.items()}
    repeats = {name: _repeats(timer) for name, timer in timers.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            time.sleep(PAUSE_SECONDS)
            timers[name].timeit(1)
            seconds = timers[name].timeit(repeats[name]) / repeats[name]
            samples[name].append(seconds * 1e6)
    return {name: _summary(values) for name, values in samples.items()}


def _repeats(timer: timeit.Timer) -> int:
    timer.timeit(1)
    seconds = min(timer.repeat(3, number=1))
    return max(1, round(SAMPLE_SECONDS / max(seconds, 1e-8)))


def _summary(values: list[float]) -> Timing:
    if len(values) == 1:
        return Timing(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)
