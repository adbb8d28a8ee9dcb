"""The drift report as one HTML page, which opens offline and asks nothing of the net."""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from ...results import counted
from ...whole_file import whole_file
from .drift_report import DRIFTS, DriftReport
from .page_layers import channel_tables, layer_strip
from .page_safety import before_and_after, evidence_table

if TYPE_CHECKING:
    from ..judge.evidence import EvidenceReport
    from ..judge.heldout import HeldOut

__all__ = ["render", "write_page"]

_UNDER = {
    "stored": "while all layers before it kept their stored statistics, as when the model is used",
    "batch": "while all layers before it normalized with the statistics of each batch",
    "sequential": "while all layers before it had their statistics corrected already",
}


def render(
    report: DriftReport,
    evidence: EvidenceReport | None = None,
    held_out: HeldOut | None = None,
    title: str = "Drift of batch-norm statistics",
) -> str:
    """Make the page.

    Parameters
    ----------
    report : DriftReport
    evidence : EvidenceReport, optional
        How far the numbers can be trusted: gets a table and its warnings.
    held_out : HeldOut, optional
        What the model says of held-out inputs before and after a re-estimation.
    title : str
        The heading; escaped, as every name of the model is.

    Returns
    -------
    str
        HTML in which style and script are inline, and a content security policy forbids all else.
        The tables do without the script, which draws the plots from them.
    """
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    parts = [
        _header(report, title),
        _verdicts(report),
        layer_strip(report.rows),
        _plots(report),
        *([] if held_out is None else [before_and_after(held_out)]),
        *([] if evidence is None else [evidence_table(evidence)]),
        channel_tables(report.rows),
        _reading(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{script}</script>\n</body>\n</html>\n"
    )


def write_page(
    path: str | os.PathLike[str],
    report: DriftReport,
    evidence: EvidenceReport | None = None,
    held_out: HeldOut | None = None,
    title: str = "Drift of batch-norm statistics",
) -> None:
    """Write the page of `render` to a file, whole or not at all.

    Raises
    ------
    WriteError
        When the file cannot be written; an older one stays as it was. An ``OSError``.
    """
    content = render(report, evidence, held_out, title)
    with whole_file(path) as written:
        written.write_text(content, encoding="utf-8")


def _header(report: DriftReport, title: str) -> str:
    layers = counted(len(report.rows), "layer")
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n"
        f'<p class="quiet">{layers}, {counted(report.samples, "sample")}. Each layer was measured '
        f"{_UNDER[report.method]}.</p>\n</header>\n<main>"
    )


def _verdicts(report: DriftReport) -> str:
    said = "".join(f"<li>{escape(text)}</li>\n" for text in report.verdicts)
    kind = "verdicts holds" if report.ok else "verdicts"
    return f'<section>\n<h2>What the numbers say</h2>\n<ul class="{kind}">\n{said}</ul>\n</section>'


def _plots(report: DriftReport) -> str:
    worst = next((i for i, row in enumerate(report.rows) if row.rank == 1), 0)
    plot = '<svg viewBox="0 0 400 400" tabindex="0" role="application"></svg>'
    return (
        '<section>\n<h2>Channel by channel</h2>\n<div id="channels" hidden>\n<figure>\n'
        '<label>Layer <select id="layer-choice"></select></label>\n'
        f'<div class="plots" id="plots" data-first="{worst}">{plot}{plot}</div>\n'
        '<output id="channel-said"></output>\n'
        "<figcaption>Each point is a channel: what the model stores, across, and what was observed,"
        " up. On the dashed line nothing has changed.</figcaption>\n</figure>\n</div>\n"
        '<noscript><p class="quiet">The plots need JavaScript; their numbers are in the tables '
        "below.</p></noscript>\n</section>"
    )


def _reading(report: DriftReport) -> str:
    refused = "".join(
        f"<li>{escape(name)}: {escape(reason)}</li>\n" for name, reason in report.refused
    )
    left_out = f"<p>Not measured:</p>\n<ul>\n{refused}</ul>\n" if refused else ""
    return (
        "<section>\n<h2>How to read this</h2>\n"
        "<p>Shift: observed less stored mean, in stored deviations, &radic;(variance + epsilon). "
        "Variance ratio: observed over stored, both with epsilon. KL: the symmetric "
        "Kullback&ndash;Leibler divergence of the two Gaussians, in nats. Variances are the "
        "population&rsquo;s. Of a layer the median over its channels is given; of shifts, that of "
        f"their size. A layer drifts from a KL of {DRIFTS:g} on, if chance alone does not explain "
        "it.</p>\n"
        "<p>How large a drift is does not tell whether re-estimated statistics would help: small "
        "ones may do harm and large ones none. <code>cbn recalibrate</code> measures that on "
        f"held-out inputs.</p>\n{left_out}</section>\n</main>"
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
