"""A progress bar on stderr, with rate and time left; away from a terminal nothing is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cbn.cli.output import printable

if TYPE_CHECKING:
    from cbn.export import recalibration

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(message: str) -> Iterator[recalibration.Progress | None]:
    """Give a callable ``(stage, done, total)`` that draws; None away from a terminal.

    Each stage has a line of its own; nothing is left behind.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        opening = bar.add_task(printable(message), total=None)
        stages: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in stages:
                bar.update(opening, visible=False)
                stages[stage] = bar.add_task(printable(stage), total=total)
            bar.update(stages[stage], completed=done, total=total)

        yield show


class _Rate(ProgressColumn):
    """Batches a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} batches/s")
