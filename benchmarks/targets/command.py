"""Measure the targets and print them."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence

from benchmarks.machine import machine
from benchmarks.results import Result
from benchmarks.table import align, format_grid, format_warnings
from benchmarks.targets.base import Row, Session
from benchmarks.targets.calls import calls
from benchmarks.targets.memory import memory
from benchmarks.targets.neighbour import neighbour
from benchmarks.targets.package import package
from benchmarks.targets.sixteen import sixteen
from benchmarks.targets.speed import backward, evaluate, train

GROUPS: dict[str, Callable[[Session], Iterator[Row]]] = {
    "train": train,
    "eval": evaluate,
    "backward": backward,
    "16-bit": sixteen,
    "call": calls,
    "neighbour": neighbour,
    "memory": memory,
    "package": package,
}
SHAPED = frozenset({"train", "eval", "backward", "16-bit"})  # what --shape says something to
HEADER = ("", "measure", "bar", "figure", "at")
SIGNS = {True: "met", False: "NOT MET", None: "-"}


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Measure all groups, or the one asked for."""
    if options.targets and options.targets not in GROUPS:
        parser.error(f"--targets: expected one of {', '.join(GROUPS)}, got {options.targets!r}")
    if options.targets and options.shapes and options.targets not in SHAPED:
        parser.error(f"--shape: --targets {options.targets} has shapes of its own, or none")
    if options.wheel and not options.wheel.is_file():
        parser.error(f"--wheel: there is no file {options.wheel}")
    session = Session(options)
    chosen = [options.targets] if options.targets else list(GROUPS)
    rows = [row for group in chosen for row in GROUPS[group](session)]
    about = machine(options.threads)
    if options.json:
        value = {
            "machine": about,
            "targets": [dataclasses.asdict(row) for row in rows],
            "results": [result.to_dict() for result in session.results],
        }
        print(json.dumps(value, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n")
    lines = [(SIGNS[row.met], row.measure, row.bar, row.figure, row.at) for row in rows]
    print("\n".join(align([HEADER, *lines], left=(0, 1, 2, 4))))
    counts = {sign: sum(row.met is met for row in rows) for met, sign in SIGNS.items()}
    print(f"\n{counts['met']} met, {counts['NOT MET']} not met, {counts['-']} not measured")
    for text in format_groups(session.results):
        print("", text, sep="\n")
    if warnings := format_warnings(session.results):
        print("", warnings, sep="\n")


def format_groups(results: Sequence[Result]) -> Iterator[str]:
    """Lay out the times behind the figures, a grid for each mode, type and layout."""

    def key(result: Result) -> tuple[str, str, str]:
        return result.case.mode, result.case.dtype, result.case.layout

    for (mode, dtype, layout), found in itertools.groupby(results, key):
        yield f"{mode}, {dtype}, channels {layout}\n{format_grid(list(found))}"
