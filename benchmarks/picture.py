"""Results as a picture: time over bytes moved, with the copy as the line to stay near."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import is_busy
from benchmarks.peers import CONTENDERS
from benchmarks.results import COPY, OURS, Result, contenders

# One colour a library (Okabe and Ito's, told apart by the colour-blind), one marker a form of it.
COLOURS = {
    "cbn": "#D55E00",
    "PyTorch": "#0072B2",
    "oneDNN": "#009E73",
    "onnxruntime": "#CC79A7",
    "numpy": "#7F7F7F",
}
MARKERS = {
    "cbn": ("o", True),
    "cbn new": ("o", False),
    "cbn layer": ("D", True),
    "cbn layer new": ("D", False),
    "torch": ("s", False),
    "torch out=": ("s", True),
    "torch mkldnn": ("P", False),
    "oneDNN NCHW": ("v", False),
    "oneDNN NHWC": ("^", True),
    "onnxruntime": ("X", True),
    "onnxruntime run": ("X", False),
    "numpy": ("*", True),
}
TITLES = {"train": "training forward", "eval": "eval forward", "call": "small calls"}
LAYOUTS = {"first": "NCHW", "last": "NHWC"}
SPREAD = 1.14  # shapes of nearly one size are drawn this factor apart at least
DPI = 150


def draw(groups: Sequence[Sequence[Result]], machine: Mapping[str, Any], path: Path) -> None:
    """Draw a panel for each mode (down) and layout (across), and write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes = list(dict.fromkeys(group[0].case.mode for group in groups))
    layouts = list(dict.fromkeys(group[0].case.layout for group in groups))
    figure, axes = pyplot.subplots(
        len(modes),
        len(layouts),
        figsize=(1.5 + 6.2 * len(layouts), 1.6 + 5.2 * len(modes)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for group in groups:
        case = group[0].case
        _panel(axes[modes.index(case.mode), layouts.index(case.layout)], group)
    for row in axes:
        row[0].set_ylabel("time of a call, median")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles.update(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    order = [*(kind.name for kind in CONTENDERS if kind.name in handles)]
    figure.legend(
        [handles[name] for name in order],
        [_label(name) for name in order],
        loc="outside lower center",
        ncols=min(len(order), 2 + 2 * len(layouts)),
        frameon=False,
    )
    dtype = groups[0][0].case.dtype
    notes = [
        f"{machine['processor']}, kernels {machine['isa']}. Full markers write into a buffer in "
        "use, hollow ones make their output."
    ]
    if any(is_busy(result.neighbours) for group in groups for result in group):
        notes.append("Not to be trusted: other processes were busy meanwhile.")
    figure.suptitle(
        f"Batch normalization, {dtype}, {machine['threads']} threads: lower is better"
        + "\n" * len(notes),
        fontweight="bold",
        linespacing=2,
    )
    figure.text(
        0.5,
        1 - 0.36 / figure.get_figheight(),
        "\n".join(notes),
        ha="center",
        va="top",
        linespacing=1.8,
        fontsize=9,
        color="#555555",
    )
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _panel(axes: Any, results: Sequence[Result]) -> None:
    from matplotlib import ticker

    case = results[0].case
    places = _places(results)
    line = (
        sorted(  # a copy moves two thirds of what backward must: its point is left of the shape's
            (place * 2 * r.case.nbytes / r.case.least_bytes, r.timings[COPY].median)
            for r, place in zip(results, places, strict=True)
        )
    )
    axes.plot(*zip(*line, strict=True), color="black", lw=1.6, zorder=1, label=COPY)
    for name in contenders(results):
        if name == COPY:
            continue
        family = next(kind.family for kind in CONTENDERS if kind.name == name)
        marker, full = MARKERS[name]
        points = [
            (place, result.timings[name].median)
            for result, place in zip(results, places, strict=True)
            if name in result.timings
        ]
        axes.plot(
            *zip(*points, strict=True),
            linestyle="none",
            marker=marker,
            markersize=8 if name == OURS else 6.5,
            color=COLOURS[family],
            markerfacecolor=COLOURS[family] if full else "white",
            markeredgecolor="black" if name == OURS else COLOURS[family],
            zorder=4 if name == OURS else 3,
            label=name,
        )
    axes.set(xscale="log", yscale="log")
    title = TITLES.get(case.mode, case.mode)
    axes.set_title(f"{title}, {LAYOUTS[case.layout]}", pad=72, fontweight="bold", fontsize=11)
    moved = "x and dy read, dx written" if case.mode == "backward" else "x read, y written"
    axes.set_xlabel(f"bytes that must be moved ({moved}, once)")
    for axis, formatter, steps in ((axes.xaxis, _bytes, (1, 2, 5)), (axes.yaxis, _time, (1,))):
        axis.set_major_locator(ticker.LogLocator(subs=steps, numticks=20))
        axis.set_major_formatter(formatter)
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(which="major", color="#dddddd", lw=0.8)
    axes.grid(which="minor", color="#f0f0f0", lw=0.5)
    axes.set_axisbelow(True)
    for result, place in zip(results, places, strict=True):
        axes.axvline(place, color="#e8e8e8", lw=3, zorder=0)
        axes.annotate(
            result.case.name,
            (place, 1.01),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=7.5,
            color="#444444",
        )


def _places(results: Sequence[Result]) -> list[float]:
    """Return where on the axis each shape stands, those of nearly one size set apart."""
    places = [float(result.case.least_bytes) for result in results]
    order = sorted(range(len(places)), key=places.__getitem__)
    for before, after in itertools.pairwise(order):
        places[after] = max(places[after], places[before] * SPREAD)
    return places


def _label(name: str) -> str:
    return {COPY: "copy (the line)", OURS: "cbn (out=)", "cbn new": "cbn (new output)"}.get(
        name, name
    )


def _bytes(value: float, _position: int) -> str:
    return _with_unit(value, ("B", "kB", "MB", "GB"))


def _time(microseconds: float, _position: int) -> str:
    return _with_unit(microseconds * 1e3, ("ns", "µs", "ms", "s"))


def _with_unit(value: float, units: tuple[str, ...]) -> str:
    thousands = min(max(0, math.floor(math.log10(value) / 3 + 1e-9)), len(units) - 1)
    return f"{value / 1000**thousands:g} {units[thousands]}"
