"""What the drift page says of safety: outputs before and after, and the evidence."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ...results import counted
from .page_tables import percent, table

if TYPE_CHECKING:
    from ..judge.evidence import EvidenceReport
    from ..judge.heldout import HeldOut

__all__ = ["before_and_after", "evidence_table"]


def before_and_after(held_out: HeldOut) -> str:
    """Draw how far the outputs agree, and what else is known of them before and after."""
    pairs = [
        ("entropy, 0 sure to 1 a guess", held_out.entropy_before, held_out.entropy_after),
        (
            "information, 0 none to 1",
            held_out.information_before,
            held_out.information_after,
        ),
        (
            "share of the largest class",
            held_out.largest_share_before,
            held_out.largest_share_after,
        ),
        (held_out.metric or "metric", held_out.metric_before, held_out.metric_after),
    ]
    shares = [
        ("agreement", held_out.agreement),
        ("agreement where the model was sure", held_out.confident_agreement),
    ]
    bars = [_bar(name, share, "after") for name, share in shares if share is not None]
    rows = [(name, "", percent(share)) for name, share in shares if share is not None]
    for name, before, after in pairs:
        if before is None or after is None:
            continue
        rows.append((name, f"{before:.4g}", f"{after:.4g}"))
        if 0 <= before <= 1 and 0 <= after <= 1:
            bars += [_bar(f"{name}: before", before, "before"), _bar("after", after, "after")]
    if held_out.classes_before is not None and held_out.classes_after is not None:
        counts = (str(held_out.classes_before), str(held_out.classes_after))
        rows.append(("classes decided for", *counts))
    rows.append(
        ("change of the outputs, in parts of their deviation", "", f"{held_out.change:.4g}")
    )
    numbers = table(("outputs", "before", "after"), rows, texts={0})
    samples = counted(held_out.samples, "held-out sample")
    where = (
        f", output {escape(held_out.output)} ({escape(held_out.kind)})" if held_out.output else ""
    )
    return (
        "<section>\n<h2>Outputs before and after</h2>\n<figure>\n"
        f'<div class="bars" aria-hidden="true">\n{"".join(bars)}</div>\n'
        f"<figcaption>On {samples}{where}. Agreement: the share of decisions that stayed the same."
        "</figcaption>\n</figure>\n"
        f"<details open>\n<summary>The numbers of the outputs</summary>\n{numbers}\n</details>\n"
        "</section>"
    )


def _bar(name: str, share: float, kind: str) -> str:
    return (
        f'<span>{escape(name)}</span><span class="track {kind}">'
        f'<i style="width:{100 * share:.2f}%"></i></span><span>{percent(share)}</span>\n'
    )


def evidence_table(evidence: EvidenceReport) -> str:
    """Show the warnings, and the rows of the evidence behind them."""
    warnings = "".join(f"<li>{escape(text)}</li>\n" for text in evidence.warnings)
    listed = f'<ul class="verdicts">\n{warnings}</ul>\n' if warnings else ""
    numbers = table(evidence.columns, [row.cells() for row in evidence.rows])
    return (
        f"<section>\n<h2>How far to trust this</h2>\n{listed}"
        f"<details>\n<summary>The evidence, layer by layer</summary>\n{numbers}\n</details>\n"
        "</section>"
    )
