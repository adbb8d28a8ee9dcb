"""``cbn fold``: batch norms into the operators beside them."""

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

__all__ = ["fold"]


def fold(
    model: Model,
    output: Output,
    data: Data = None,
    nodes: Nodes = None,
    clone: Annotated[
        bool,
        typer.Option(
            "--clone",
            help="Copy what others need too: a convolution whose result has other readers, a "
            "weight that other nodes share.",
        ),
    ] = False,
    fix_inputs: Annotated[
        bool,
        typer.Option(
            "--fix-inputs",
            help="Take parameters that are graph inputs with a default as constants; folded ones "
            "are no inputs any more.",
        ),
    ] = False,
    into_elementwise: Annotated[
        bool,
        typer.Option(
            "--into-elementwise",
            help="Where nothing else is left, join a batch norm with the Mul and Add beside it "
            "to one Mul and one Add.",
        ),
    ] = False,
    force: Force = False,
    provider: Provider = ProviderChoice.cpu,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Fold nodes into Conv, Gemm, MatMul and each other.

    Each node is folded or stays with its reason; a model of an opset below 7 is lifted first. The
    model is then run before and after, and written only if they agree up to rounding.

    Example: cbn fold model.onnx -o folded.onnx
    """
    from cbn import export

    def run() -> export.RewriteResult:
        return export.fold(
            model,
            nodes=nodes or None,
            clone=clone,
            fix_inputs=fix_inputs,
            into_elementwise=into_elementwise,
            data=data,
            seed=seed,
            providers=provider.value,
            num_threads=threads,
        )

    rewrite("folding", model, output, data, force, as_json, run)
