"""``cbn export``: a layer's weights in, an ONNX file out."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cbn.cli.destinations import require_file, written_with
from cbn.cli.errors import about
from cbn.cli.options import AsJson, Output
from cbn.cli.output import print_json
from cbn.cli.weights import read_layer

__all__ = ["export"]


class FormChoice(enum.StrEnum):
    """How the graph computes batch norm; see ``cbn.export.to_onnx``."""

    batchnorm = "batchnorm"
    affine = "affine"
    primitives = "primitives"


def export(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="A .npz or .safetensors file with torch's keys: weight, bias, running_mean, "
            "running_var, num_batches_tracked.",
            show_default=False,
        ),
    ],
    output: Output,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            metavar="NAME",
            help="The layer to take from a whole network's weights, such as layer1.0.bn1.",
            show_default="the only one there is",
        ),
    ] = None,
    rank: Annotated[
        int,
        typer.Option(
            "--rank",
            metavar="2..5",
            min=2,
            max=5,
            help="Dimensions of the input: 2 is (N, C), 3 (N, C, L), 4 (N, C, H, W), "
            "5 (N, C, D, H, W).",
        ),
    ] = 4,
    form: Annotated[
        FormChoice,
        typer.Option(
            "--form",
            help="batchnorm: one BatchNormalization node; affine: Sub, Mul, Add of the fused "
            "layer; primitives: no BatchNormalization and, in training mode, no training kernel.",
        ),
    ] = FormChoice.batchnorm,
    training: Annotated[
        bool,
        typer.Option(
            "--training",
            help="Normalize with the batch's statistics, and return the new running statistics.",
        ),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset",
            metavar="N",
            help="ONNX opset, 7 or later.",
            show_default="18",
        ),
    ] = None,
    eps: Annotated[
        float, typer.Option("--eps", metavar="X", help="Added to the variance, under the root.")
    ] = 1e-5,
    momentum: Annotated[
        float,
        typer.Option(
            "--momentum",
            metavar="X",
            help="torch's convention: the share of the new value; used in training mode.",
        ),
    ] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Write one batch norm layer as an ONNX model.

    Example: cbn export network.safetensors --prefix layer1.0.bn1 -o bn1.onnx
    """
    from cbn import export as onnx_export

    for target in written_with(output):
        require_file("--output", target, weights)
    state = read_layer(weights, prefix)
    with about(weights):
        missing = [key for key in ("running_mean", "running_var") if key not in state]
        if missing and not training:
            raise ValueError(
                f"no {' and '.join(missing)} to normalize with; --training uses the batch's"
            )
        layer = _make_layer(state, rank, eps, momentum).train(training)
        model = onnx_export.to_onnx(layer, opset=opset, form=form.value, rank=rank)
    onnx_export.save(model, output)
    written = {
        "path": str(output),
        "opset": next(entry.version for entry in model.opset_import if entry.domain == ""),
        "form": form.value,
        "mode": "training" if training else "eval",
        "num_features": layer.num_features,
        "rank": rank,
        "dtype": str(next(iter(layer.state_dict().values())).dtype),
    }
    if as_json:
        print_json(written)
        return
    typer.echo(
        "{path}: {form}, opset {opset}, {mode}, {num_features} channels, rank {rank}, "
        "{dtype}".format(**written)
    )


def _make_layer(state: dict[str, np.ndarray], rank: int, eps: float, momentum: float) -> Any:
    """Build the layer that a state dict describes, for inputs of the given rank."""
    import cbn

    kind = {2: cbn.BatchNorm1d, 3: cbn.BatchNorm1d, 4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}[rank]
    arrays = {key: array for key, array in state.items() if key != "num_batches_tracked"}
    if not arrays:
        raise ValueError("num_batches_tracked alone is no layer")
    for key, array in arrays.items():
        if array.dtype.kind not in "fV":  # V: bfloat16
            raise TypeError(f"{key}: expected floating-point numbers, got {array.dtype}")
    layer = kind(
        next(iter(arrays.values())).size,
        eps=eps,
        momentum=momentum,
        affine="weight" in state or "bias" in state,
        track_running_stats="running_mean" in state or "running_var" in state,
        dtype=np.result_type(*arrays.values()).name,
    )
    layer.load_state_dict(state)
    return layer
