"""The command line's options."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
from pathlib import Path

from benchmarks.cases import CALL_SHAPES, DEFAULT_SHAPES, DTYPES, LAYOUTS, MODES, Case, parse_shape

PICTURES = (".png", ".svg", ".pdf")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Declare the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shape",
        action="append",
        metavar="NxCx...",
        help="(N, C, ...) in both layouts; may be repeated (default: eight common shapes)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of x; parameters of the 16-bit types are float32 (default: float32)",
    )
    parser.add_argument(
        "--layout",
        action="append",
        choices=LAYOUTS,
        help="of channels; may be repeated (default: first)",
    )
    parser.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help="may be repeated; call: the cost of a call on a small array, in eval mode "
        "(default: train)",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="time this contender beside the copy and cbn; may be repeated (default: all)",
    )
    parser.add_argument("--threads", type=int, default=2, help="for every contender (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (default: 15)")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="measure a case again where other processes were busy meanwhile (default: 0 times)",
    )
    parser.add_argument("--mean", type=float, default=0.0, help="of x (default: 0)")
    parser.add_argument("--deviation", type=float, default=1.0, help="of x (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print tables for a page: each library's fastest form, in microseconds, and its ULP",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw time over bytes moved: .png, .svg or .pdf (needs matplotlib)",
    )
    parser.add_argument(
        "--targets",
        nargs="?",
        const="",
        metavar="GROUP",
        help="measure what cbn sets out to reach instead, and say what is reached; GROUP: one of "
        "train, eval, backward, 16-bit, call, neighbour, memory, package (default: all)",
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE.whl", help="with --targets: the wheel to weigh"
    )
    return parser


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what cannot be run, with a message that says why."""
    for name in ("threads", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    if options.retries < 0:
        parser.error(f"--retries: expected 0 or more, got {options.retries}")
    if options.wheel and options.targets is None:
        parser.error("--wheel goes with --targets alone")
    if options.json and options.markdown:
        parser.error("--json and --markdown: expected one of them")
    if options.plot and not options.plot.resolve().parent.is_dir():
        parser.error(f"--plot: there is no folder {options.plot.parent}")
    if options.plot and options.plot.suffix not in PICTURES:
        parser.error(f"--plot: expected a name in {', '.join(PICTURES)}, got {options.plot}")
    needs = ["cbn"]
    if options.dtype == "bfloat16":
        needs.append("ml_dtypes")
    if options.plot:
        needs.append("matplotlib")
        if options.targets is not None:
            parser.error("--plot does not go with --targets")
    for module in needs:
        if importlib.util.find_spec(module) is None:
            parser.error(f"{module} is not installed: pip install {module.replace('_', '-')}")
    try:
        options.shapes = [parse_shape(text) for text in options.shape or ()]
    except ValueError as error:
        parser.error(f"--shape: {error}")
    options.layouts = list(dict.fromkeys(options.layout or ("first",)))
    options.modes = list(dict.fromkeys(options.mode or ("train",)))
    for shape in options.shapes:
        needs_batch = options.targets is not None or {"train", "backward"} & set(options.modes)
        if needs_batch and math.prod(shape) == shape[1]:
            parser.error(f"--shape: training needs more than one value a channel, got {shape}")


def cases(options: argparse.Namespace) -> list[list[Case]]:
    """Return the cases asked for, one list for each mode and layout."""
    return [
        [
            Case(shape, options.dtype, layout, mode, options.threads)
            for shape in options.shapes or (CALL_SHAPES if mode == "call" else DEFAULT_SHAPES)
        ]
        for mode, layout in itertools.product(options.modes, options.layouts)
    ]
