"""A target, and the cases that the targets share."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence

from benchmarks.cases import DEFAULT_SHAPES, Case, Layout, Mode
from benchmarks.load import remark
from benchmarks.results import Result
from benchmarks.run import installed, run

LAYOUTS = {"first": "NCHW", "last": "NHWC"}
MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class Row:
    """One measure: what it should be, what it is, and whether that will do.

    ``met`` is None where it could not be measured; ``at`` is the shape that decides, or the reason.
    """

    group: str
    measure: str
    bar: str
    figure: str
    met: bool | None
    at: str = ""


@dataclasses.dataclass
class Session:
    """The options, and all results so far, so that no case is measured twice."""

    options: Namespace
    results: list[Result] = dataclasses.field(default_factory=list)

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        return self.options.shapes or DEFAULT_SHAPES

    def measure(
        self,
        mode: Mode,
        layout: Layout,
        names: Iterable[str],
        dtype: str = "float32",
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> list[Result]:
        """Time the named contenders on each shape."""
        kinds = installed(list(names))
        found = [
            run(
                Case(shape, dtype, layout, mode, self.options.threads),
                kinds,
                self.options.rounds,
                accuracy=False,
                retries=self.options.retries,
            )
            for shape in (self.shapes if shapes is None else shapes)
        ]
        self.results.extend(found)
        return found


Ratio = Callable[[Result], float | None]


def over(name: str, base: str = "cbn") -> Ratio:
    """Times of ``name`` over those of ``base``, None where either did not run."""
    return lambda result: (
        result.ratio(name, base) if {name, base} <= result.timings.keys() else None
    )


def fastest_over_cbn(*families: str) -> Ratio:
    """The time of the fastest form of these libraries over cbn's."""

    def ratio(result: Result) -> float | None:
        names = filter(None, map(result.fastest, families))
        return min(map(result.ratio, names), default=None)

    return ratio


def pairs(results: Sequence[Result], ratio: Ratio) -> list[tuple[Result, float]]:
    """Return the ratios that exist."""
    found = [(result, ratio(result)) for result in results]
    return [(result, value) for result, value in found if value is not None]


def at_least(
    group: str,
    measure: str,
    results: Sequence[Result],
    ratio: Ratio,
    bar: Callable[[Case], float],
    strict: bool = False,
) -> Row:
    """Hold the least ratio, relative to its own bar, against it."""
    found = pairs(results, ratio)
    if not found:
        return missing(group, measure)
    result, value = min(found, key=lambda pair: pair[1] / bar(pair[0].case))
    limit = bar(result.case)
    sign = ">" if strict else ">="
    met = value > limit if strict else value >= limit
    at = result.case.name + remark(result.neighbours)
    return Row(group, measure, f"{sign} {limit:g}", f"{value:.2f}", met, at)


def at_most(
    group: str,
    measure: str,
    results: Sequence[Result],
    ratio: Ratio,
    bar: float,
    keep: Callable[[Case], bool] = lambda case: True,
) -> Row:
    """Hold the largest ratio of the cases kept against the bar."""
    found = pairs([result for result in results if keep(result.case)], ratio)
    if not found:
        return missing(group, measure)
    result, value = max(found, key=lambda pair: pair[1])
    at = result.case.name + remark(result.neighbours)
    return Row(group, measure, f"<= {bar:g}", f"{value:.2f}", value <= bar, at)


def missing(group: str, measure: str, reason: str = "no such peer or shape in this run") -> Row:
    """State that there is nothing to measure with."""
    return Row(group, measure, "", "", None, reason)
