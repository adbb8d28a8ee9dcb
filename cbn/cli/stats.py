"""``cbn stats``: the running statistics of a model as a small file for each domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cbn.cli.destinations import model_files, require_file, written_with
from cbn.cli.errors import DOES_NOT_HOLD, about
from cbn.cli.options import AsJson, Model, Output
from cbn.cli.output import count, print_json, print_text, print_verdict, printable, working
from cbn.cli.tables import print_report

if TYPE_CHECKING:
    from cbn.export import StatisticsBank

__all__ = ["stats"]

stats = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Keep the running statistics of a model in a small file for each domain.\n\n"
    "Take them from a model, give them to one without touching its weights, mix those of two "
    "domains.\n\n"
    "Example: cbn stats export night.onnx -o night.safetensors --domain night",
    short_help="Keep statistics apart from the model: export, apply, blend.",
)

Bank = Annotated[
    Path,
    typer.Argument(
        metavar="STATS", help="The statistics, from cbn stats export.", show_default=False
    ),
]

BankOutput = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="OUT", help="The .safetensors file to write.", show_default=False
    ),
]

Domain = Annotated[
    str | None,
    typer.Option(
        "--domain",
        metavar="TEXT",
        help="What the statistics are of: a camera, a site, the night.",
        show_default="the name of the output",
    ),
]


@stats.command()
def export(
    model: Model, output: BankOutput, domain: Domain = None, as_json: AsJson = False
) -> None:
    """Write the running statistics of a model to a file.

    Float64, by node, with the model's fingerprint: a hash over operators and weights that leaves
    the statistics out. So they fit the model, whatever statistics it holds.

    Example: cbn stats export night.onnx -o night.safetensors
    """
    from cbn.export import StatisticsBank

    require_file("--output", output, *model_files(model))
    with working(f"reading {model}"), about(model):
        bank = StatisticsBank.of_model(model, output.stem if domain is None else domain)
    bank.save(output)
    _report(bank, output, as_json)


@stats.command()
def apply(
    model: Model,
    bank: Bank,
    output: Output,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Take a model with another fingerprint too: statistics go to the nodes of the "
            "same name and number of channels.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a copy of a model that has these statistics.

    Weights stay as they are; nodes in training mode that get statistics are in eval mode. A model
    that the statistics were not made for is refused. Exit code 1 if a node got none.

    Example: cbn stats apply model.onnx night.safetensors -o night.onnx
    """
    from cbn import export as onnx_export

    read = model_files(model)
    for target in written_with(output):
        require_file("--output", target, *read, bank)
    held = onnx_export.StatisticsBank.load(bank)
    with working(f"reading {model}"), about(model):
        result = held.apply(model, force=force)
    written = result.ok or force
    if written:
        onnx_export.save(result.model, output)
    if as_json:
        print_json({**result.to_dict(), "output": str(output) if written else None})
    else:
        print_report(result)
        for note in result.notes:
            typer.echo()
            print_text(note)
        typer.echo()
        changed = sum(row.changed for row in result.rows)
        print_verdict(result.ok, f"{changed} of {count(len(result.rows), 'node')} given statistics")
        if written:
            typer.echo(f"{output}: written{'' if result else ' all the same (--force)'}")
        else:
            typer.echo(f"{output}: not written, since a node got none (--force writes it)")
    if not result:
        raise typer.Exit(DOES_NOT_HOLD)


@stats.command()
def blend(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="Statistics of one domain.", show_default=False)
    ],
    second: Annotated[
        Path,
        typer.Argument(
            metavar="B", help="Those of another, of the same model.", show_default=False
        ),
    ],
    output: BankOutput,
    weight: Annotated[
        float | None,
        typer.Option(
            "--weight", metavar="X", min=0, max=1, help="The share of B.", show_default=False
        ),
    ] = None,
    prior: Annotated[
        float | None,
        typer.Option(
            "--prior",
            metavar="N",
            min=0,
            help="In place of a weight: A counts as N samples beside those that B comes from, "
            "where cbn recalibrate --stats wrote their number down.",
            show_default=False,
        ),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain",
            metavar="TEXT",
            help="What the statistics are of.",
            show_default="the domains of both, with their shares",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a mixture of two files of statistics of one model.

    Means and variances are averaged alike, as cbn recalibrate --prior does with the stored and the
    observed ones.

    Example: cbn stats blend day.safetensors night.safetensors --weight 0.3 -o dusk.safetensors
    """
    import dataclasses

    from cbn.export import StatisticsBank

    if (weight is None) == (prior is None):
        raise typer.BadParameter("expected one of --weight and --prior")
    require_file("--output", output)
    one, two = StatisticsBank.load(first), StatisticsBank.load(second)
    with about(second, first):
        share = weight if weight is not None else two.share_beside(prior or 0.0)
        mixed = one.blend(two, share)
    if domain is not None:
        mixed = dataclasses.replace(mixed, domain=domain)
    mixed.save(output)
    _report(mixed, output, as_json)


def _report(bank: StatisticsBank, output: Path, as_json: bool) -> None:
    channels = sum(found.mean.size for found in bank.statistics.values())
    if as_json:
        print_json(
            {
                "path": str(output),
                "domain": bank.domain,
                "fingerprint": bank.fingerprint.digest,
                "channels": channels,
                "nodes": {
                    name: {"channels": found.mean.size, "samples": found.samples}
                    for name, found in bank.statistics.items()
                },
            }
        )
        return
    typer.echo(
        f"{output}: {count(len(bank.statistics), 'node')}, {count(channels, 'channel')}, "
        f"domain {printable(bank.domain)!r}, model {bank.fingerprint.digest[:12]}"
    )
