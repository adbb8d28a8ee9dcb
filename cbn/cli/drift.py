"""``cbn drift``: how far your data is from what a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cbn.cli.data_options import BatchSize, Images, Limit, Patterns, Report, Samples
from cbn.cli.errors import about
from cbn.cli.extras import extras
from cbn.cli.options import AsJson, Model, Provider, ProviderChoice, Threads
from cbn.cli.output import print_json, printable
from cbn.cli.progress import progress_bar
from cbn.cli.rewriting import named_files, require_elsewhere, require_outside
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
    from cbn.export.files import weight_files

    if report is not None:
        with about(model):
            held = weight_files(model)
        require_elsewhere(report, model, images, *named_files(data), *held)
        require_outside(report, Path(data))
    with progress_bar(f"reading {data}") as show, about(model, Path(data)), extras():
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
    ranking = [f"{place}. {printable(name)}" for place, name in enumerate(found.ranking, 1)]
    typer.echo(f"\nlargest drift first: {', '.join(ranking[:RANKED])}")
    typer.echo()
    for text in found.verdicts:
        typer.echo(f"- {printable(text)}")
    typer.echo(
        "\nHow large a drift is does not tell whether other statistics would help: cbn recalibrate "
        "measures that."
    )
