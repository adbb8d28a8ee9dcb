"""``cbn drift``: how far your data is from what a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cbn.cli.destinations import model_files, named_files, require_file, require_outside
from cbn.cli.errors import about, extras
from cbn.cli.options import (
    AsJson,
    BatchSize,
    Images,
    Limit,
    Model,
    Patterns,
    Provider,
    ProviderChoice,
    Report,
    Samples,
    Threads,
)
from cbn.cli.output import print_json, print_text
from cbn.cli.progress import progress_bar
from cbn.cli.tables import print_report

if TYPE_CHECKING:
    from cbn.export.recalibration import DriftReport

__all__ = ["drift"]

RANKED = 5
"""Layers that the ranking names; the table has the rank of all."""


def drift(
    model: Model,
    data: Samples,
    report: Report = None,
    images: Images = None,
    nodes: Patterns = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    provider: Provider = ProviderChoice.cpu,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say how far your data is from what each batch norm was trained on.

    Compares the statistics that the model stores with those of the data, layer by layer: the shift
    of the middle channel's mean and the largest, in stored deviations; the middle variance ratio;
    the symmetric KL divergence. It looks only: nothing is changed, and the exit code is 0 whether
    there is drift or not.

    Example: cbn drift model.onnx --data images.npz --report drift.html
    """
    from cbn.export import recalibration

    named = (*named_files(data), images)
    if report is not None:
        require_file("--report", report, *model_files(model), *named)
        require_outside("--report", report, Path(data))
    with progress_bar(f"reading {data}") as show, about(model, *named, data=Path(data)), extras():
        found = recalibration.drift(
            model,
            data,
            nodes=nodes or None,
            batch_size=batch_size,
            images=images,
            limit=limit,
            providers=provider.value,
            num_threads=threads,
            progress=show,
        )
    if report is not None:
        recalibration.write_page(report, found, title=f"{model.name}: drift")
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)
    if report is not None:
        typer.echo(f"{report}: written")


def _print(found: DriftReport) -> None:
    print_report(found)
    ranking = [f"{place}. {name}" for place, name in enumerate(found.ranking, 1)]
    for note in found.notes:
        typer.echo()
        print_text(note)
    typer.echo()
    print_text(f"largest drift first: {', '.join(ranking[:RANKED])}")
    typer.echo()
    for text in found.verdicts:
        print_text(text, mark="- ")
    typer.echo()
    print_text(
        "How large a drift is does not tell whether other statistics would help: cbn recalibrate "
        "measures that."
    )
