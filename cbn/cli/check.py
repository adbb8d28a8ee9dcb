"""``cbn check``: every BatchNormalization of a model, recomputed and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cbn.cli.errors import DOES_NOT_HOLD, about
from cbn.cli.options import AsJson, Data, Model, Provider, ProviderChoice, Seed, Threads
from cbn.cli.output import count, print_json, print_text, print_verdict, working
from cbn.cli.tables import print_report

if TYPE_CHECKING:
    from cbn.export import CrosscheckReport

__all__ = ["check"]


def check(
    model: Model,
    data: Data = None,
    provider: Provider = ProviderChoice.cpu,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Compare cbn and onnxruntime on a model, node by node.

    onnxruntime runs the model; each BatchNormalization node is computed again by cbn from the
    same input and compared, and each output of the model is compared between onnxruntime with
    its graph optimisation off and on. Exit code 0 only if all agree within their tolerance.

    With --provider cuda every node must run there, those that compute shapes aside, and float32
    is not rounded to TF32. CUDA has no training mode from opset 14 on: cbn lower first.

    Example: cbn check model.onnx --data inputs.npz
    """
    from cbn import export

    with working(f"checking {model}"), about(model, data=data):
        report = export.crosscheck(
            model, data, providers=provider.value, seed=seed, num_threads=threads
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
        for note in report.notes:
            print_text(note)
        print_verdict(report.ok, _verdict(report))
    if not report:
        raise typer.Exit(DOES_NOT_HOLD)


def _verdict(report: CrosscheckReport) -> str:
    nodes, outputs = (
        [row.ok for row in report.rows if row.kind == kind] for kind in ("node", "output")
    )
    if report:
        checked = f"{count(len(nodes), 'node')} and {count(len(outputs), 'output')}"
        return f"{checked} within tolerance, on {report.inputs}"
    failed = [
        f"{len(held) - sum(held)} of {count(len(held), noun)}"
        for held, noun in ((nodes, "node"), (outputs, "output"))
        if not all(held)
    ]
    return f"{' and '.join(failed)} not within tolerance, on {report.inputs}"
