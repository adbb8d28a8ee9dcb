"""What a command prints: JSON for programs, text for people; tables are in cbn.cli.tables."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

__all__ = [
    "count",
    "make_console",
    "print_json",
    "print_pairs",
    "print_text",
    "print_verdict",
    "printable",
    "working",
    "write",
]


def print_json(data: Mapping[str, Any]) -> None:
    """Print strict JSON: no NaN, no Infinity; ASCII alone, whatever the terminal's encoding."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def print_text(text: str, mark: str = "") -> None:
    """Print a paragraph, beside a mark: wrapped on a terminal, one line elsewhere."""
    console = make_console()
    line = f"{mark}{printable(text)}"
    if console.is_terminal:
        line = textwrap.fill(
            line,
            console.width,
            subsequent_indent=" " * len(mark),
            break_long_words=False,
            break_on_hyphens=False,
        )
    sys.stdout.write(f"{line}\n")


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        print(f"{name:<{width}}  {printable(str(value))}")


def print_verdict(ok: bool, text: str, *, instead: str = "") -> None:
    """Print the closing line: green when it holds, red when it does not.

    Where it holds and that says too much, `instead` of "passed" is in yellow.
    """
    word = (instead or "passed") if ok else "FAILED"
    style = ("bold yellow" if instead else "bold green") if ok else "bold red"
    line = Text(f"{word}: {printable(text)}", style=style)
    console = make_console()
    write(console, line, soft_wrap=not console.is_terminal)


@contextmanager
def working(message: str) -> Iterator[None]:
    """Show on a terminal that a command is at work and for how long; leave nothing behind."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(printable(message), total=None)
        yield


def count(number: int, noun: str) -> str:
    """Return the number with its noun: ``1 node``, ``12 nodes``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Escape control characters: a name in a file must not steer the reader's terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def make_console() -> Console:
    """Return a console for stdout that takes text as it is; colour on a terminal alone."""
    return Console(highlight=False, markup=False, emoji=False)


def write(console: Console, *what: Any, **options: Any) -> None:
    """Print through ``sys.stdout``: rich's own writing answers a closed pipe with exit code 1."""
    with console.capture() as capture:
        for renderable in what:
            console.print(renderable, **options)
    text = capture.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    sys.stdout.write(text)
