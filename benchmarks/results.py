"""What a run found, and the ratios that are made of it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.measure import Timing
from benchmarks.peers import FAMILIES

OURS, COPY = "cbn", "copy"


@dataclasses.dataclass(frozen=True)
class Result:
    """The timings and errors of a case, by contender; the copy has no error."""

    case: Case
    timings: dict[str, Timing]
    max_ulp: dict[str, float]
    kernels: dict[str, str]  # the names that libraries give to what they chose
    neighbours: float | None  # share of the cores that other processes used meanwhile

    def ratio(self, name: str, base: str = OURS) -> float:
        """Return how many times as long ``name`` takes as ``base``."""
        return self.timings[name].median / self.timings[base].median

    def fastest(self, family: str) -> str | None:
        """Return the fastest form of a library, None where it does not take this case."""
        names = [name for name in self.timings if FAMILIES[name] == family]
        return min(names, key=lambda name: self.timings[name].median, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.case),
            "megabytes": self.case.megabytes,
            "neighbours": self.neighbours,
            "contenders": {
                name: {
                    "family": FAMILIES[name],
                    "kernel": self.kernels.get(name),
                    "microseconds": dataclasses.asdict(timing),
                    "over_copy": self.ratio(name, COPY),
                    "over_cbn": self.ratio(name),
                    "max_ulp": self.max_ulp.get(name),
                }
                for name, timing in self.timings.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class Spread:
    """Ratios over several cases: how far they go, and at which shape."""

    cases: int
    geometric_mean: float
    least: float
    least_at: str
    most: float
    most_at: str

    @classmethod
    def of(cls, ratios: Sequence[tuple[Case, float]]) -> Spread:
        """Gather (case, ratio) pairs, at least one."""
        low = min(ratios, key=lambda pair: pair[1])
        high = max(ratios, key=lambda pair: pair[1])
        mean = statistics.geometric_mean([ratio for _, ratio in ratios])
        return cls(len(ratios), mean, low[1], low[0].name, high[1], high[0].name)


def contenders(results: Sequence[Result]) -> list[str]:
    """Return the names of those that ran, in the order of all contenders."""
    ran = {name for result in results for name in result.timings}
    return [name for name in FAMILIES if name in ran]


def summarize(results: Sequence[Result]) -> dict[str, Spread]:
    """Return the times of each contender over cbn's, by what the line of a table calls them.

    Where a library has several forms, also the fastest of them in each case, which is the fair
    figure; and last cbn's own times over the copy's.
    """
    names = contenders(results)
    pairs: dict[str, list[tuple[Case, float]]] = {
        name: [(r.case, r.ratio(name)) for r in results if name in r.timings]
        for name in names
        if name != OURS
    }
    families = dict.fromkeys(FAMILIES[name] for name in names)
    for family in families:
        forms = [name for name in names if FAMILIES[name] == family]
        if len(forms) > 1 and family != FAMILIES[OURS]:
            best = [(r.case, r.fastest(family), r) for r in results]
            pairs[f"{family}, the fastest form"] = [
                (case, r.ratio(name)) for case, name, r in best if name is not None
            ]
    spreads = {name: Spread.of(values) for name, values in pairs.items()}
    spreads["cbn over the copy"] = Spread.of([(r.case, r.ratio(OURS, COPY)) for r in results])
    return spreads
