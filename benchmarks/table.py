"""Results as text and as plain values for JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.measure import Timing

OURS, COPY = "cbn", "copy"
BUSY = 0.05  # a larger share of the cores used by others is worth a warning


@dataclasses.dataclass(frozen=True)
class Result:
    """The timings and errors of a case, by contender; the copy has no error."""

    case: Case
    timings: dict[str, Timing]
    max_ulp: dict[str, float]
    neighbours: float | None  # share of the cores that other processes used meanwhile

    def ratio(self, name: str, base: str) -> float:
        """Return how many times as long ``name`` takes as ``base``."""
        return self.timings[name].median / self.timings[base].median

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.case),
            "megabytes": self.case.megabytes,
            "neighbours": self.neighbours,
            "contenders": {
                name: {
                    "microseconds": dataclasses.asdict(timing),
                    "over_copy": self.ratio(name, COPY),
                    "over_cbn": self.ratio(name, OURS),
                    "max_ulp": self.max_ulp.get(name),
                }
                for name, timing in self.timings.items()
            },
        }


HEADER = ("shape", "contender", "µs", "quartiles", "x copy", "x cbn", "max ULP")


def format_results(results: Sequence[Result]) -> str:
    """Lay out one block a case, one line a contender."""
    lines: list[Sequence[str]] = [HEADER]
    for result in results:
        shape = f"{result.case} ({result.case.megabytes:.3g} MB)"
        for name, timing in result.timings.items():
            ulp = result.max_ulp.get(name)
            lines.append(
                (
                    shape,
                    name,
                    number(timing.median),
                    f"{number(timing.low)}-{number(timing.high)}",
                    f"{result.ratio(name, COPY):.2f}",
                    f"{result.ratio(name, OURS):.2f}",
                    "" if ulp is None else f"{ulp:.3g}",
                )
            )
            shape = ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text: list[str] = []
    for line in lines:
        if line[0] and text:
            text.append("")
        names = [line[i].ljust(widths[i]) for i in (0, 1)]
        numbers = [line[i].rjust(widths[i]) for i in range(2, len(HEADER))]
        text.append("  ".join([*names, *numbers]).rstrip())
    return "\n".join(text)


def format_summary(results: Sequence[Result]) -> str:
    """State each contender's time over cbn's: geometric mean and range over the cases."""
    ratios: dict[str, list[float]] = {}
    for result in results:
        for name in result.timings:
            if name != OURS:
                ratios.setdefault(name, []).append(result.ratio(name, OURS))
    width = max(map(len, ratios))
    return "\n".join(
        f"{name.ljust(width)}  takes {statistics.geometric_mean(values):.2f} times as long as cbn "
        f"(geometric mean of {len(values)}; {min(values):.2f} to {max(values):.2f})"
        for name, values in ratios.items()
    )


def format_warnings(results: Sequence[Result]) -> str:
    """Name the cases that were measured while other processes kept the machine busy."""
    return "\n".join(
        f"warning: other processes used {result.neighbours:.0%} of the cores during {result.case}: "
        "its times are not to be trusted"
        for result in results
        if result.neighbours is not None and result.neighbours > BUSY
    )


def number(value: float) -> str:
    """Write a time with about three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
