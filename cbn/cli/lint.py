"""``cbn lint``: what may go wrong with the batch norms of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cbn.cli.errors import DOES_NOT_HOLD, about
from cbn.cli.options import AsJson, Model
from cbn.cli.output import print_json, print_text, print_verdict, working
from cbn.cli.tables import print_report

__all__ = ["lint"]


def lint(
    model: Model,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 for warnings too, not for errors alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what may go wrong with the batch norms of a model.

    Each remark has a code, a severity, what it means and what to do. Nothing is run and nothing is
    changed. Exit code 1 if one is an error.

    Example: cbn lint model.onnx
    """
    from cbn import export

    with working(f"reading {model}"), about(model):
        report = export.lint(model)
    holds = report.ok and not (strict and report.count("warning"))
    if as_json:
        print_json(report.to_dict())
    else:
        if report.rows:
            print_report(report)
            typer.echo()
        for code, (text, advice) in report.meanings.items():
            print_text(f"{code}: {text}.")
            print_text(f"What to do: {advice}.", mark="  ")
        if report.rows:
            typer.echo()
        print_verdict(holds, report.summary)
    if not holds:
        raise typer.Exit(DOES_NOT_HOLD)
