"""Arguments and options that several commands take, each declared once."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "BatchSize",
    "Data",
    "Force",
    "Images",
    "Limit",
    "Model",
    "Nodes",
    "Output",
    "Patterns",
    "Provider",
    "ProviderChoice",
    "Report",
    "Samples",
    "Seed",
    "Threads",
]


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

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Inputs for the model: .npz with an array for each input (first axis the "
        "samples), .npy for a model of one input, onnx test data (.pb or its folder).",
        show_default="seeded random inputs that fit the model's declared shapes",
    ),
]

Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the random inputs.")]

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="The ONNX file to write; never the input.",
        show_default=False,
    ),
]

Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Write the model even if a node could not be changed or the proof fails."
    ),
]

Nodes = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="NAME",
        help="Only this node, as cbn inspect names it; may be given again.",
        show_default="every node",
    ),
]

# Of the commands that run a model over the user's own data.

Samples = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Inputs for the model: .npz, .npy, a folder of them, onnx test data, a folder of "
        "images, or script.py:function, which gives batches.",
        show_default=False,
    ),
]

Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="TOML",
        help="How a folder of images is read: size, mean, std, layout.",
        show_default=False,
    ),
]

Patterns = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="NAME",
        help="Only this node, as cbn inspect names it, or those of a pattern such as 'layer1*'; "
        "may be given again.",
        show_default="every node",
    ),
]

BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Samples at once.",
        show_default="what the model declares, or a default",
    ),
]

Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Use N samples at most.", show_default="all"),
]

Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="HTML",
        help="Write a page with pictures, which opens offline.",
        show_default=False,
    ),
]
