"""``cbn lower``: BatchNormalization in operators that every provider has."""

from __future__ import annotations

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

__all__ = ["lower"]


def lower(
    model: Model,
    output: Output,
    data: Data = None,
    nodes: Nodes = None,
    affine: Annotated[
        bool,
        typer.Option("--affine", help="Spell nodes in eval mode out too, as Sub, Mul, Add."),
    ] = False,
    force: Force = False,
    provider: Provider = ProviderChoice.cpu,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Spell nodes out in operators that every provider has.

    Nodes in training mode become reductions and arithmetic, nodes with statistics per activation
    (spatial=0) Sub, Mul, Add; a model of an opset below 7 is lifted first. The model is then run
    before and after, and written only if they agree up to rounding.

    Example: cbn lower model.onnx -o lowered.onnx
    """
    from cbn import export

    def run() -> export.RewriteResult:
        return export.lower(
            model,
            affine=affine,
            nodes=nodes or None,
            data=data,
            seed=seed,
            providers=provider.value,
            num_threads=threads,
        )

    rewrite("lowering", model, output, data, force, as_json, run)
