"""Arguments and options that several commands take, each declared once."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Model", "Provider", "ProviderChoice", "Threads"]


class ProviderChoice(enum.StrEnum):
    """Where onnxruntime runs the model."""

    cpu = "cpu"
    cuda = "cuda"
    auto = "auto"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")
]

Provider = Annotated[
    ProviderChoice,
    typer.Option(
        "--provider",
        help="Where onnxruntime runs the model; auto is CUDA where it is available, the CPU "
        "otherwise.",
    ),
]

Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="Threads for onnxruntime and for cbn.",
        show_default="what the machine and OMP_NUM_THREADS allow",
    ),
]
