"""Results as text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.load import is_busy
from benchmarks.peers import FAMILIES
from benchmarks.results import COPY, OURS, Result, contenders, summarize

HEADER = ("shape", "contender", "µs", "quartiles", "x copy", "x cbn", "max ULP")
SUMMARY = ("times over cbn's", "shapes", "geometric mean", "least", "at", "most", "at")


def format_results(results: Sequence[Result]) -> str:
    """Lay out one block a case, one line a contender."""
    lines: list[Sequence[str]] = [HEADER]
    for result in results:
        shape = f"{result.case.name} ({result.case.megabytes:.3g} MB)"
        for name, timing in result.timings.items():
            ulp = result.max_ulp.get(name)
            lines.append(
                (
                    shape,
                    name,
                    number(timing.median),
                    f"{number(timing.low)}-{number(timing.high)}",
                    f"{result.ratio(name, COPY):.2f}",
                    f"{result.ratio(name):.2f}",
                    "" if ulp is None else f"{ulp:.3g}",
                )
            )
            shape = ""
    text: list[str] = []
    for line, row in zip(lines, align(lines, left=(0, 1)), strict=True):
        if line[0] and text:
            text.append("")
        text.append(row)
    return "\n".join(text)


def format_grid(results: Sequence[Result]) -> str:
    """Lay out one line a shape, one column a contender: medians in microseconds."""
    names = contenders(results)
    lines: list[Sequence[str]] = [("shape, µs", *names)]
    for result in results:
        medians = [
            number(result.timings[name].median) if name in result.timings else "" for name in names
        ]
        lines.append((result.case.name, *medians))
    return "\n".join(align(lines, left=(0,)))


def format_markdown(results: Sequence[Result]) -> str:
    """Lay out one line a shape, one column a library: the median of its fastest form in
    microseconds, and its largest error in ULP in brackets. cbn's is the form with out=."""
    names = contenders(results)
    families = dict.fromkeys(FAMILIES[name] for name in names)
    lines: list[Sequence[str]] = [
        ("shape", *families),
        (":--", *("--:" for _ in families)),
    ]
    for result in results:
        cells = [result.case.name]
        for family in families:
            name = OURS if family == OURS else result.fastest(family)
            if name is None:
                cells.append("")
                continue
            ulp = result.max_ulp.get(name)
            error = "" if ulp is None else f" ({ulp:.0f})" if ulp >= 10 else f" ({ulp:.1f})"
            cells.append(number(result.timings[name].median) + error)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_summary(results: Sequence[Result]) -> str:
    """State each contender's time over cbn's, and cbn's over the copy's."""
    lines: list[Sequence[str]] = [SUMMARY]
    for name, spread in summarize(results).items():
        ends = ((spread.least, spread.least_at), (spread.most, spread.most_at))
        both = [text for ratio, shape in ends for text in (f"{ratio:.2f}", shape)]
        lines.append((name, str(spread.cases), f"{spread.geometric_mean:.2f}", *both))
    return "\n".join(align(lines, left=(0, 4, 6)))


def format_warnings(results: Sequence[Result]) -> str:
    """Name the cases that were measured while other processes kept the machine busy."""
    busy = [result for result in results if is_busy(result.neighbours)]
    if not busy:
        return ""
    worst = max(result.neighbours or 0 for result in busy)
    names = ", ".join(dict.fromkeys(result.case.name for result in busy))
    return (
        f"warning: not to be trusted, since other processes used up to {worst:.0%} of the cores: "
        f"{len(busy)} of {len(results)} cases ({names})"
    )


def align(lines: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Pad columns to one width, those in ``left`` to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def number(value: float) -> str:
    """Write a time with about three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
