"""Timing: contenders take turns, so that what the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
import timeit
from collections.abc import Mapping
from typing import Any

SAMPLE_SECONDS = 2e-3  # a sample repeats short calls until about this long
SETTLE_SECONDS = 4e-3
SETTLE_LIMIT = 0.5


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds a call: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


class Statement:
    """A call as a user writes it: ``Statement("f(x, out=y)", f=f, x=x, y=y)``.

    Text, since a closure around it would cost as much as a small call does.
    """

    def __init__(self, text: str, **names: Any) -> None:
        self._text = text
        self._names = names

    def __call__(self) -> Any:
        return eval(self._text, dict(self._names))

    def timer(self) -> timeit.Timer:
        """Return what times it."""
        return timeit.Timer(self._text, globals=dict(self._names))


def measure(calls: Mapping[str, Statement], rounds: int) -> dict[str, Timing]:
    """Time each call in every round, in a new order each time, after as many that are not timed."""
    timers = {name: call.timer() for name, call in calls.items()}
    repeats = {name: sample_size(timer) for name, timer in timers.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            settle()
            samples[name].append(sample(timers[name], repeats[name]))
    return {name: summarize(values) for name, values in samples.items()}


def sample(timer: timeit.Timer, repeats: int) -> float:
    """Return the microseconds of a call, the mean of some, after as many that are not timed.

    After the pause of `settle` it takes about a millisecond until caches are filled and threads are
    awake again: short calls would be timed in that state, and long ones not.
    """
    timer.timeit(repeats)
    return timer.timeit(repeats) / repeats * 1e6


def sample_size(timer: timeit.Timer) -> int:
    """Return how many calls make a sample."""
    timer.timeit(1)
    seconds = min(timer.repeat(3, number=1))
    return max(1, round(SAMPLE_SECONDS / max(seconds, 1e-8)))


def settle() -> None:
    """Wait for the idle threads of the contender before to stop spinning.

    OpenMP's spin for some milliseconds after a call and onnxruntime's for fifty or so, on a core
    that the next contender needs.
    """
    for _ in range(round(SETTLE_LIMIT / SETTLE_SECONDS)):
        used = time.process_time()
        time.sleep(SETTLE_SECONDS)
        if time.process_time() - used < 0.1 * SETTLE_SECONDS:
            return


def summarize(values: list[float]) -> Timing:
    """Return median and quartiles."""
    if len(values) == 1:
        return Timing(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)
