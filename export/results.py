"""What every check and rewrite returns: a truthy report with a row per node.

A row is a frozen dataclass; a report holds rows and is true when each of them holds. The command
line only prints what is here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

__all__ = ["Report", "Row", "counted", "format_table", "is_numeric", "to_plain"]

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?(e[-+]?\d+)?|inf|nan)|[-?]", re.IGNORECASE)


class Row(Protocol):
    """One line of a report."""

    @property
    def ok(self) -> bool:
        """Whether what this row states holds."""
        ...

    def cells(self) -> Sequence[str]:
        """The row as text, one string for each of the report's columns."""
        ...


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows, true when all of them hold. Subclasses name their columns and their title."""

    rows: tuple[Any, ...]

    columns: ClassVar[tuple[str, ...]] = ()

    @property
    def ok(self) -> bool:
        """True when every row holds."""
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return format_table(self.columns, [row.cells() for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers, ready for ``json.dumps``."""
        return {"ok": self.ok, **to_plain(self)}


def to_plain(value: Any) -> Any:
    """Turn dataclasses, arrays and NumPy scalars into what JSON can hold (NaN, inf: None)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Iterable):
        return [to_plain(item) for item in value]
    return str(value)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 node``, ``12 nodes``, ``3 batches``."""
    plural = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}{plural}"


def is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers, and nothing but them, ``-`` and ``?``."""
    return all(map(_NUMBER.fullmatch, cells)) and any(map(str.isalnum, "".join(cells)))


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text under a header, each column as wide as its widest cell.

    A column of numbers, where there are any, is aligned right, so that digits stand under digits.
    """
    lines = [tuple(columns), *map(tuple, rows)]
    cells = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in cells]
    right = [is_numeric(column[1:]) for column in cells]
    text = [
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])
