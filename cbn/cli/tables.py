"""Tables that are whole at every width: nothing in them is ever cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.box import Box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cbn.cli.output import make_console, printable, write

__all__ = ["print_report", "print_table"]

# Text is folded to no less than this: names beside numbers, and text under a name.
NARROWEST_NAME = 24
NARROWEST_TEXT = 12

GAP = 2  # between columns
INDENT = 2  # of what stands under a name

# ASCII, so that a table reads the same whatever the terminal's encoding.
_RULED_HEADER = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class _Column(NamedTuple):
    title: Text
    texts: list[Text]
    width: int
    numeric: bool


def print_report(report: Any) -> None:
    """Print the rows of a ``cbn.export`` report."""
    rows = report.rows
    print_table(report.columns, [row.cells() for row in rows], [row.ok for row in rows])


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], ok: Sequence[bool] | None = None
) -> None:
    """Print rows of text under a header; rows that are not ok are red on a terminal.

    Away from a terminal each row is one line, as wide as it needs to be. A terminal that is too
    narrow for that gets long text folded; where this does not do either, the first cell of each
    row, its name, on a line of its own; and where that is not enough, the last texts below.
    """
    console = make_console()
    styles = ["" if holds else "red" for holds in ok or [True] * len(rows)]
    cells = list(zip(columns, *rows, strict=True))
    table = [_column(title, texts) for title, *texts in cells]
    if not console.is_terminal:
        console.width = max(console.width, _total(table))
    if _total(table) <= console.width:
        write(console, _render(table, styles))
        return
    # Titles of several words go on several lines.
    table = [_column(title.replace(" ", "\n"), texts) for title, *texts in cells]
    folded = _fold(table, console.width, NARROWEST_NAME)
    if _total(folded) <= console.width:
        write(console, _render(folded, styles))
        return
    names, *others = table
    others, below = _part(others, console.width - INDENT)
    console.width = max(console.width, _total(others) + INDENT)
    header = [column._replace(texts=[]) for column in others]
    write(console, names.title, Padding(_render(header, []), (0, 0, 0, INDENT)))
    for index, style in enumerate(styles):
        row = [column._replace(texts=column.texts[index : index + 1]) for column in others]
        values = Padding(_render(row, [style], header=False), (0, 0, 0, INDENT))
        named = [(column, column.texts[index].plain) for column in below]
        texts = [
            Padding(Text(f"{_title(column)}: {text}", style, overflow="fold"), (0, 0, 0, INDENT))
            for column, text in named
            if text != "-"
        ]
        write(console, Text(names.texts[index].plain, style, overflow="fold"), values, *texts)


def _column(title: str, texts: Sequence[str]) -> _Column:
    from cbn.export.results import is_numeric

    lines = [Text(line) for line in title.split("\n")]
    shown = [Text(printable(text)) for text in texts]
    return _Column(
        title=Text("\n").join(lines),
        texts=shown,
        width=max(text.cell_len for text in (*lines, *shown)),
        numeric=is_numeric(texts),
    )


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width + GAP for column in columns) - GAP


def _fold(columns: Sequence[_Column], width: int, least: int) -> list[_Column]:
    """Make columns of text narrower until the table fits, the widest first, to `least` at most."""
    columns = list(columns)
    while _total(columns) > width:
        slack = [0 if column.numeric else column.width - least for column in columns]
        index = slack.index(max(slack))
        if slack[index] <= 0:
            break
        columns[index] = columns[index]._replace(width=columns[index].width - 1)
    return columns


def _part(columns: Sequence[_Column], width: int) -> tuple[list[_Column], list[_Column]]:
    """Part columns in those that fit side by side, folded, and the last texts, which do not."""
    beside, below = list(columns), list[_Column]()
    while _total(folded := _fold(beside, width, NARROWEST_TEXT)) > width:
        texts = [index for index, column in enumerate(beside) if not column.numeric]
        if not texts:
            break
        below.insert(0, beside.pop(texts[-1]))
    return folded, below


def _title(column: _Column) -> str:
    return column.title.plain.replace("\n", " ")


def _render(columns: Sequence[_Column], styles: Sequence[str], *, header: bool = True) -> Table:
    table = Table(
        box=_RULED_HEADER if header else None,
        show_edge=False,
        show_header=header,
        padding=(0, GAP - (1 if header else 0), 0, 0),
        pad_edge=False,
    )
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.numeric else "left",
            width=column.width,
            overflow="fold",
        )
    for index, style in enumerate(styles):
        table.add_row(*(column.texts[index] for column in columns), style=style)
    return table
