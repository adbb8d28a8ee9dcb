"""Runs of consecutive samples: which are chosen, held out, and read together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

__all__ = ["Run", "batches_of", "complement", "count", "locate", "part", "spread"]

Run = tuple[int, int]
"""The samples start, start + 1, ..., stop - 1."""

STRATA = 100
"""Into how many equal stretches data is cut, each of which gives its share of what is chosen."""


def count(runs: Sequence[Run]) -> int:
    """Return how many samples there are in all."""
    return sum(stop - start for start, stop in runs)


def spread(total: int, wanted: int, generator: np.random.Generator | None = None) -> list[Run]:
    """Choose samples from everywhere: a run out of each of a hundred equal stretches of the data.

    Parameters
    ----------
    total, wanted : int
        How many there are, and how many are chosen of them.
    generator : numpy.random.Generator, optional
        Where in its stretch each run lies; at its start by default.

    Returns
    -------
    list of (int, int)
        In order, disjoint, `wanted` samples in all.
    """
    strata = max(1, min(STRATA, wanted))
    edges = [total * index // strata for index in range(strata + 1)]
    runs = []
    for start, stop in pairwise(edges):
        length = wanted * stop // total - wanted * start // total
        room = stop - start - length
        offset = 0 if generator is None else int(generator.integers(room + 1))
        if length:
            runs.append((start + offset, start + offset + length))
    return runs


def complement(runs: Sequence[Run], total: int) -> list[Run]:
    """Give the samples of 0, ..., total - 1 that are in none of the runs, which are in order."""
    edges = [0, *(edge for run in runs for edge in run), total]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def part(runs: Sequence[Run], chosen: Sequence[Run]) -> list[Run]:
    """Choose among the samples of `runs`, numbered anew from 0; both are in order."""
    starts = [0]
    for start, stop in runs:
        starts.append(starts[-1] + stop - start)
    result = []
    for first, last in chosen:
        while first < last:
            index = bisect_right(starts, first) - 1
            stop = min(last, starts[index + 1])
            shift = runs[index][0] - starts[index]
            result.append((first + shift, stop + shift))
            first = stop
    return result


def locate(runs: Sequence[Run], chosen: Sequence[Run]) -> list[Run]:
    """Number samples that `runs` hold from the first sample of `runs` on; undoes `part`."""
    result = []
    before = 0
    remaining = iter(chosen)
    run = next(remaining, None)
    for start, stop in runs:
        while run is not None and run[0] < stop:
            result.append((run[0] - start + before, run[1] - start + before))
            run = next(remaining, None)
        before += stop - start
    return result


def batches_of(
    runs: Sequence[Run], breaks: Sequence[int], size: int, *, fixed: bool
) -> Iterator[list[Run]]:
    """Cut samples into batches, none of which goes across a break.

    Between two breaks all batches have the fixed size, and what is left over at the end is left
    out; or there are as few as can be of `size` at most, as equal as can be.
    """
    for stretch in _between(runs, breaks):
        total = count(stretch)
        if fixed:
            edges = list(range(0, total + 1, size))
        else:
            parts = -(-total // size)
            edges = [total * index // parts for index in range(parts + 1)]
        for edge in pairwise(edges):
            yield part(stretch, [edge])


def _between(runs: Sequence[Run], breaks: Sequence[int]) -> Iterator[list[Run]]:
    """Group runs by the stretch between two breaks that they lie in."""
    stretch: list[Run] = []
    for start, stop in runs:
        while start < stop:
            index = bisect_right(breaks, start)
            if stretch and bisect_right(breaks, stretch[-1][0]) != index:
                yield stretch
                stretch = []
            end = min(stop, breaks[index]) if index < len(breaks) else stop
            stretch.append((start, end))
            start = end
    if stretch:
        yield stretch
