"""Tables of the drift page, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ...results import is_numeric

__all__ = ["head", "percent", "table"]


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    kind: str = "",
    texts: Iterable[int] | None = None,
) -> str:
    """Make a table whose cells are escaped; `texts` are its columns of words, aligned left."""
    if texts is None:
        by_column = zip(*rows, strict=True)
        texts = [i for i, cells in enumerate(by_column) if not is_numeric(cells)]
    words = set(texts)
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{' class=text' if index in words else ''}>{escape(cell)}</td>"
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">{head(columns, words)}<tbody>\n'
        f"{body}\n</tbody></table></div>"
    )


def head(columns: Sequence[str], texts: Iterable[int] = ()) -> str:
    """Make the header of a table, before its body."""
    cells = (
        f'<th scope="col"{" class=text" if index in texts else ""}>{escape(column)}</th>'
        for index, column in enumerate(columns)
    )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def percent(share: float) -> str:
    """Return a share as text: ``87.5 %``."""
    return f"{100 * share:.1f} %"
