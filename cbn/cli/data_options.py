"""Options of the commands that run a model over the user's own data, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BatchSize", "Images", "Limit", "Patterns", "Report", "Samples"]

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
