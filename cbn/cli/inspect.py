"""``cbn inspect``: what BatchNormalization a model holds."""

from __future__ import annotations

import typer

from cbn.cli.errors import DOES_NOT_HOLD, about
from cbn.cli.options import AsJson, Model
from cbn.cli.output import print_json, print_text, working
from cbn.cli.tables import print_report

__all__ = ["inspect"]


def inspect(model: Model, as_json: AsJson = False) -> None:
    """List every BatchNormalization node of a model.

    For each node: channels, opset, mode, where its parameters come from, the range of running_var,
    what stands before and behind it, what it folds into or why it does not, and remarks on what
    may go wrong. Nothing is run and nothing is changed. Exit code 1 if a node cannot compute what
    it should.

    Example: cbn inspect model.onnx
    """
    from cbn import export

    with working(f"reading {model}"), about(model):
        report = export.inspect(model)
    if as_json:
        print_json(report.to_dict())
    if not report.rows:
        raise export.ModelError(f"{model}: {report}")
    if not as_json:
        print_report(report)
        if report.meanings:
            typer.echo()
        for code, text in report.meanings.items():
            print_text(f"{code}: {text}")
    if not report:
        raise typer.Exit(DOES_NOT_HOLD)
