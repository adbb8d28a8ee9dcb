"""The command line: one module for each command, and what they share.

Nothing imports this package but :mod:`cbn.__main__`. A command parses its options, calls the public
API of :mod:`cbn` and :mod:`cbn.export`, and prints the result object that comes back. Errors and
exit codes are in :mod:`cbn.cli.errors`, tables and JSON in :mod:`cbn.cli.output`, options that
several commands take in :mod:`cbn.cli.options`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cbn._version import __version__
from cbn.cli.check import check
from cbn.cli.drift import drift
from cbn.cli.errors import CommandGroup
from cbn.cli.export import export
from cbn.cli.fold import fold
from cbn.cli.freeze import freeze
from cbn.cli.info import info
from cbn.cli.inspect import inspect
from cbn.cli.lint import lint
from cbn.cli.lower import lower
from cbn.cli.recalibrate import recalibrate
from cbn.cli.stats import stats

__all__ = ["app"]

app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: the same text on a terminal, in a pipe and in a log
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cbn {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 it holds, 1 it does not hold, 2 bad usage or input, 130 interrupted. "
    "CBN_TRACEBACK=1 shows where an error was raised."
)
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Batch normalization for people who ship models: inspect, check, repair, re-estimate, make."""


# Look, then prove, then repair, then make: the order in which the help lists them.
app.command()(inspect)
app.command()(lint)
app.command()(check)
app.command(short_help="Say how far your data is from what a model was trained on.")(drift)
app.command()(freeze)
app.command()(lower)
app.command()(fold)
app.command()(recalibrate)
app.add_typer(stats, name="stats")
app.command()(export)
app.command()(info)
