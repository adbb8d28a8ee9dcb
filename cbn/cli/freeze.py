"""``cbn freeze``: from training mode to eval mode, by a stated policy."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from cbn.cli.options import (
    AsJson,
    Data,
    Force,
    Model,
    Nodes,
    Output,
    Provider,
    ProviderChoice,
    Seed,
    Threads,
)
from cbn.cli.rewriting import rewrite

__all__ = ["freeze"]


class PolicyChoice(enum.StrEnum):
    """Which statistics the frozen model has; see ``cbn.export.freeze``."""

    stored = "stored"
    recalibrated = "recalibrated"
    batch = "batch"


def freeze(
    model: Model,
    output: Output,
    data: Data = None,
    policy: Annotated[
        PolicyChoice,
        typer.Option(
            "--policy",
            help="stored: the statistics in the file, of a network that was trained; "
            "recalibrated: those of --data, for one that has none; batch: those of each batch, on "
            "purpose, lowered to primitives.",
        ),
    ] = PolicyChoice.stored,
    nodes: Nodes = None,
    force: Force = False,
    provider: Provider = ProviderChoice.cpu,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Turn nodes in training mode into nodes in eval mode.

    Shows how far the outputs move, proves that the frozen nodes compute what their statistics say,
    and writes the model only if they do. Nodes whose statistics were never trained are refused.
    A model of an opset below 7 is lifted first.

    Example: cbn freeze exported_in_training.onnx -o frozen.onnx --data inputs.npz
    """
    from cbn import export
    from cbn.export.recalibration import estimator

    def run() -> export.RewriteResult:
        return export.freeze(
            model,
            policy.value,
            nodes=nodes or None,
            estimator=estimator(providers=provider.value, num_threads=threads),
            data=data,
            seed=seed,
            providers=provider.value,
            num_threads=threads,
        )

    rewrite("freezing", model, output, data, force, as_json, run)
