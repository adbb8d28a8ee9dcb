"""Time cbn beside a plain copy, PyTorch, onnxruntime and NumPy, where installed, in one run.

Contenders take turns; times are medians over the rounds, with the same number of threads for all.
"x copy" and "x cbn" are times over the copy's and over cbn's. "max ULP" is the largest error
against a wider type, in units in the last place of the larger of |(x - mean) * scale| and |bias|.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy import Reference
from benchmarks.cases import CALL_SHAPES, DEFAULT_SHAPES, Case, make_data, parse_shape
from benchmarks.load import Neighbours
from benchmarks.measure import measure
from benchmarks.peers import CONTENDERS, Contender
from benchmarks.peers.plain_copy import compiled_copy
from benchmarks.table import Result, format_results, format_summary, format_warnings

PACKAGES = ("cbn", "numpy", "torch", "onnxruntime")


def main(arguments: list[str] | None = None) -> None:
    """Read the options, run the cases and print a table or JSON."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("cbn") is None:
        parser.error("cbn is not installed")
    if options.mode == "backward":
        parser.error("--mode backward: this cbn has no gradient; accepted: train, eval, call")
    try:
        shapes = [parse_shape(text) for text in options.shape or ()]
    except ValueError as error:
        parser.error(f"--shape: {error}")
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds: expected 1 or more")

    for shape in shapes:
        if options.mode == "train" and math.prod(shape) == shape[1]:
            parser.error(f"--shape: training needs more than one value a channel, got {shape}")

    shapes = shapes or list(CALL_SHAPES if options.mode == "call" else DEFAULT_SHAPES)
    contenders = [kind for kind in CONTENDERS if kind.installed() and options.mode in kind.modes]
    results = []
    for shape in shapes:
        case = Case(shape, options.dtype, options.layout, options.mode, options.threads)
        if sys.stderr.isatty():
            print(f"measuring {case} ...", end="\r", file=sys.stderr, flush=True)
        results.append(run(case, contenders, options))
        gc.collect()

    if options.json:
        value = {"machine": machine(options), "results": [item.to_dict() for item in results]}
        print(json.dumps(value, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in machine(options).items()))
    print(f"{options.mode}, {options.dtype}, channels {options.layout}\n")
    print(format_results(results), end="\n\n")
    print(format_summary(results), end="\n\n")
    if warnings := format_warnings(results):
        print(warnings, end="\n\n")
    for kind in contenders:
        print(f"{kind.name}: {kind.legend}")
    if compiled_copy() is None:
        print("(no C compiler with OpenMP here: the copy is np.copyto in Python threads)")


def make_parser() -> argparse.ArgumentParser:
    """Declare the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shape",
        action="append",
        metavar="NxCx...",
        help="(N, C, ...) in both layouts; may be repeated (default: eight common shapes)",
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--layout", choices=("first", "last"), default="first", help="of channels")
    parser.add_argument(
        "--mode",
        choices=("train", "eval", "backward", "call"),
        default="train",
        help="call: the cost of a call on a small array, in eval mode (default: train)",
    )
    parser.add_argument("--threads", type=int, default=2, help="for every contender (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (default: 15)")
    parser.add_argument("--mean", type=float, default=0.0, help="of x (default: 0)")
    parser.add_argument("--deviation", type=float, default=1.0, help="of x (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def run(case: Case, kinds: list[type[Contender]], options: argparse.Namespace) -> Result:
    """Measure one case."""
    data = make_data(case, options.mean, options.deviation)
    contenders = {kind.name: kind(case, data) for kind in kinds}
    calls = {name: contender.prepare() for name, contender in contenders.items()}
    neighbours = Neighbours()
    timings = measure(calls, options.rounds)
    busy = neighbours.share()
    reference = Reference(case, data)
    errors = {
        name: reference.max_ulp(contender.output())
        for name, contender in contenders.items()
        if contender.computes
    }
    return Result(case, timings, errors, busy)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """State what was measured with: processor, cores, threads, versions."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "Python": platform.python_version(),
        **{name: value for name, value in versions.items() if value},
    }


def processor() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def version(name: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        module = sys.modules.get(name)  # cbn in an uninstalled checkout
        return getattr(module, "__version__", None)


if __name__ == "__main__":
    main()
