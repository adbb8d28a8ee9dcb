"""The layers on the drift page: the heat strip, and the tables of layers and of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ...results import counted
from .drift_report import DRIFTS, DriftRow
from .page_tables import head, table

__all__ = ["channel_tables", "layer_strip"]

# Ends of the colour scales, which are logarithmic: no colour, and the full one.
_SHIFTS = (0.03, 3.0)
_DIVERGENCES = (DRIFTS / 100, DRIFTS * 100)
_LARGEST_RATIO = 8.0

_CHANNEL_COLUMNS = (
    "channel",
    "stored mean",
    "observed mean",
    "stored variance",
    "observed variance",
    "shift",
    "variance ratio",
    "KL",
)

_LAYER_COLUMNS = (
    "layer",
    "name",
    "channels",
    "samples",
    "shift",
    "largest shift",
    "its channel",
    "variance ratio",
    "KL",
    "rank",
    "drifts",
)


def layer_strip(rows: Sequence[DriftRow]) -> str:
    """Draw the layers as cells in the order of the network, once for each of three numbers."""
    lines = [
        _cells(
            "kl", "symmetric KL", rows, [_log_part(row.typical_kl, _DIVERGENCES) for row in rows]
        ),
        _cells("shift", "shift of mean", rows, [_log_part(r.typical_shift, _SHIFTS) for r in rows]),
        _cells("ratio", "variance ratio", rows, [_ratio_part(r.typical_ratio) for r in rows]),
    ]
    every = max(1, len(rows) // 12)
    positions = "".join(
        f"<span>{row.position if index % every == 0 else ''}</span>"
        for index, row in enumerate(rows)
    )
    lines.append(
        f'<div class="numbers" aria-hidden="true"><div class="label"></div>{positions}</div>'
    )
    numbers = table(
        _LAYER_COLUMNS,
        [_layer_cells(row) for row in rows],
        kind="layers",
        texts={1},
    )
    return (
        "<section>\n<h2>Layer by layer</h2>\n<figure>\n"
        '<div class="strip">\n' + "\n".join(lines) + "\n</div>\n"
        '<div class="key" aria-hidden="true">'
        f'<span>KL {_DIVERGENCES[0]:g}<i class="one"></i>{_DIVERGENCES[1]:g}</span>'
        f'<span>shift {_SHIFTS[0]:g}<i class="one"></i>{_SHIFTS[1]:g} deviations</span>'
        f'<span>ratio 1/{_LARGEST_RATIO:g}<i class="two"></i>{_LARGEST_RATIO:g}</span>'
        "<span><b></b>drifts</span></div>\n"
        '<output id="layer-said"></output>\n'
        "<figcaption>From the input, left, to the output, right: the middle channel of each layer. "
        "A dot marks the layers that drift. Choose a layer to see its channels.</figcaption>\n"
        "</figure>\n<details>\n<summary>The numbers of all layers</summary>\n"
        f"{numbers}\n</details>\n</section>"
    )


def _cells(kind: str, label: str, rows: Sequence[DriftRow], parts: Sequence[float]) -> str:
    # Keyboards and screen readers go through the layers once: the first line says all.
    first = kind == "kl"
    made = []
    for row, part in zip(rows, parts, strict=True):
        names = [
            "cell",
            *(["drifts"] if first and row.drifts else []),
            *(["narrow"] if part < 0 else []),
        ]
        words = escape(_words(row), quote=True)
        told = f'aria-label="{words}"' if first else 'tabindex="-1"'
        made.append(
            f'<a class="{" ".join(names)}" href="#layer-{row.position}" title="{words}" {told} '
            f'style="--v:{abs(part):.3f}"></a>'
        )
    hidden = "" if first else ' aria-hidden="true"'
    return f'<div class="{kind}"{hidden}><div class="label">{label}</div>{"".join(made)}</div>'


def _words(row: DriftRow) -> str:
    return (
        f"layer {row.position}, {row.name}: shift {row.typical_shift:.2f} deviations, variance "
        f"ratio {row.typical_ratio:.3g}, KL {row.typical_kl:.3g}"
        f"{', drifts' if row.drifts else ''}"
    )


def _log_part(value: float, ends: tuple[float, float]) -> float:
    """Place a value between the ends of a logarithmic scale, 0 to 1; NaN is beyond its end."""
    if not value <= ends[1]:
        return 1.0
    if value <= ends[0]:
        return 0.0
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])


def _ratio_part(ratio: float) -> float:
    """Place a ratio between 1/8 and 8, -1 to 1."""
    if math.isnan(ratio):
        return 1.0
    if ratio <= 0:
        return -1.0
    return max(-1.0, min(1.0, math.log(ratio) / math.log(_LARGEST_RATIO)))


def _layer_cells(row: DriftRow) -> list[str]:
    return [
        str(row.position),
        row.name,
        str(row.channels),
        str(row.samples),
        f"{row.typical_shift:.3f}",
        f"{row.largest_shift:+.3f}",
        str(row.largest_channel),
        f"{row.typical_ratio:.4g}",
        f"{row.typical_kl:.4g}",
        str(row.rank),
        "yes" if row.drifts else "no",
    ]


def channel_tables(rows: Sequence[DriftRow]) -> str:
    """Make a closed table of each layer's channels: the script draws the plots from them."""
    made = []
    for row in rows:
        values = zip(
            row.stored_mean,
            row.observed_mean,
            row.stored_var,
            row.observed_var,
            row.shift,
            row.var_ratio,
            row.kl,
            strict=True,
        )
        # Closing tags that HTML does without would be a third of the page.
        body = "\n".join(
            f"<tr><td>{channel}" + "".join(f"<td>{number:.4g}" for number in numbers)
            for channel, numbers in enumerate(values)
        )
        name = f"{row.position}: {row.name}"
        shared = "" if len(row.members) == 1 else f", shared by {counted(len(row.members), 'node')}"
        made.append(
            f'<details class="layer" id="layer-{row.position}" '
            f'data-name="{escape(name, quote=True)}">\n'
            f"<summary>{escape(name)} ({counted(row.channels, 'channel')}{shared})</summary>\n"
            f'<div class="scroll" tabindex="0"><table>{head(_CHANNEL_COLUMNS)}<tbody>\n{body}\n'
            "</tbody></table></div></details>"
        )
    tables = "\n".join(made)
    return f"<section>\n<h2>The numbers of all channels</h2>\n{tables}\n</section>"
