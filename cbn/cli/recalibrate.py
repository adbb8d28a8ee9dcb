"""``cbn recalibrate``: running statistics from your own data."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cbn.cli.destinations import (
    model_files,
    named_files,
    require_apart,
    require_file,
    require_outside,
    written_with,
)
from cbn.cli.errors import DOES_NOT_HOLD, KEPT, about, extras, keeping
from cbn.cli.options import (
    AsJson,
    BatchSize,
    Images,
    Limit,
    Model,
    Output,
    Patterns,
    Provider,
    ProviderChoice,
    Report,
    Samples,
    Threads,
)
from cbn.cli.output import print_json, print_text, print_verdict, working
from cbn.cli.progress import progress_bar
from cbn.cli.tables import print_report

if TYPE_CHECKING:
    from cbn.export.recalibration import RecalibrationResult

__all__ = ["recalibrate"]


class MethodChoice(enum.StrEnum):
    """How the statistics are measured; see ``cbn.export.recalibrate``."""

    batch = "batch"
    sequential = "sequential"


def _parse_prior(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        prior = float(text)
    except ValueError:
        prior = -1.0
    if math.isnan(prior) or prior < 0:
        raise typer.BadParameter(f"expected auto or a number of samples, got {text!r}")
    return prior


def recalibrate(
    model: Model,
    data: Samples,
    output: Output,
    method: Annotated[
        MethodChoice,
        typer.Option(
            "--method",
            help="batch: one pass, each node normalizes with the batch; sequential: layer by "
            "layer, whatever the batches.",
        ),
    ] = MethodChoice.batch,
    prior: Annotated[
        Any,
        typer.Option(
            "--prior",
            metavar="auto|N",
            parser=_parse_prior,
            help="How many samples the stored statistics count as; auto: chosen by the outputs on "
            "held-out inputs, so that what data cannot support stays as it is; 0: nothing stored.",
        ),
    ] = "auto",
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="A label for each sample (.npy, .npz, .npz:name, .csv, .txt, or folders, for "
            "images in folders by class): the model is not written if fewer held-out samples are "
            "right.",
            show_default=False,
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            "--scores",
            metavar="NAME",
            help="The output that holds the scores of classes, for --prior auto and --labels.",
            show_default="probabilities, or the only output of shape (N, K) or (N, T, K)",
        ),
    ] = None,
    report: Report = None,
    stats: Annotated[
        Path | None,
        typer.Option(
            "--stats",
            metavar="FILE",
            help="Write the statistics apart too, as cbn stats export does, with their counts "
            "where nothing stored is left.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="Keep what was measured in this file (with --method sequential also in a folder "
            "FILE.tensors beside it); the same command goes on from there. Deleted once the model "
            "is written.",
            show_default=False,
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="SCHEDULER",
            help="Run the batches on a Dask cluster, such as tcp://host:8786.",
            show_default=False,
        ),
    ] = None,
    nodes: Patterns = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out",
            metavar="X",
            min=0,
            max=0.99,
            help="The share of the data that takes no part, to compare both models on.",
        ),
    ] = 0.2,
    memory: Annotated[
        int,
        typer.Option(
            "--memory",
            metavar="MIB",
            min=1,
            help="What the sequential method keeps in memory between layers; more goes to disk.",
        ),
    ] = 1024,
    force: Annotated[
        bool, typer.Option("--force", help="Write the model even if the metric got worse.")
    ] = False,
    provider: Provider = ProviderChoice.cpu,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the choice of held-out data.")
    ] = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Re-estimate running statistics on your own data.

    Part of the data is held out; the statistics that the rest gives replace the stored ones, as
    far as the prior says; both models are compared on the held-out part. With labels, a model that
    does worse is not written, and the exit code is 1. Nodes in training mode are in eval
    mode in the new model. Ctrl-C loses nothing with --checkpoint.

    Example: cbn recalibrate model.onnx --data images.npz -o night.onnx
    """
    from cbn import export
    from cbn.export import recalibration
    from cbn.export.recalibration.data.labels import FOLDERS

    if not held_out and (prior == "auto" or labels is not None):
        option = "--labels" if labels is not None else "--prior auto"
        raise ValueError(f"{option} needs data that is held out, and --held-out is 0")
    files = [data, *([labels] if labels not in (None, FOLDERS) else [])]
    given = [file for item in files for file in named_files(item)]
    read = (*model_files(model), *given, images)
    outputs = [("--output", target) for target in written_with(output)]
    others = {"--report": report, "--stats": stats, "--checkpoint": checkpoint}
    outputs += [(option, path) for option, path in others.items() if path is not None]
    require_apart(*(path for _, path in outputs))
    for option, path in outputs:
        require_file(option, path, *read)
        require_outside(option, path, Path(data))
    named = (*given, images, checkpoint, dask)
    with (
        keeping(checkpoint),
        progress_bar(f"reading {data}") as show,
        about(model, *named, data=Path(data)),
        extras(),
    ):
        result = export.recalibrate(
            model,
            data,
            method=method.value,
            prior=prior,
            nodes=nodes or None,
            held_out=held_out,
            labels=labels,
            scores=scores,
            batch_size=batch_size,
            images=images,
            limit=limit,
            checkpoint=checkpoint,
            keep_checkpoint=True,
            executor=dask,
            providers=provider.value,
            num_threads=threads,
            seed=seed,
            progress=show,
            memory=memory * 2**20,
        )
    written = result.ok or force
    if written:
        with keeping(checkpoint), working(f"writing {output}"):
            export.save(result.model, output)
            if stats is not None:
                result.bank(stats.stem).save(stats)
    if report is not None:
        recalibration.write_page(
            report,
            result.drift,
            evidence=result.evidence,
            held_out=result.held_out,
            title=f"{model.name}: re-estimated statistics",
        )
    if written and checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if as_json:
        print_json({**result.to_dict(), "output": str(output) if written else None})
    else:
        _print(result)
        if report is not None:
            typer.echo(f"{report}: written")
        if stats is not None and written:
            typer.echo(f"{stats}: written")
        if checkpoint is not None and not written:
            typer.echo(f"{checkpoint}: {KEPT}")
        if written:
            typer.echo(f"{output}: written{'' if result else ' all the same (--force)'}")
        else:
            why = "the metric got worse" if result.worse else "a node could not be re-estimated"
            typer.echo(f"{output}: not written, since {why} (--force writes it)")
    if not result:
        raise typer.Exit(DOES_NOT_HOLD)


def _print(result: RecalibrationResult) -> None:
    print_report(result)
    typer.echo()
    print_report(result.evidence)
    for text in (*result.notes, result.prior.reason):
        if text:
            typer.echo()
            print_text(text)
    for warning in result.warnings:
        typer.echo()
        print_text(f"warning: {warning}")
    typer.echo()
    instead = "doubtful" if result.doubtful else "" if result.changed else "nothing changed"
    print_verdict(result.ok, result.summary, instead=instead)
