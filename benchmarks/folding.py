"""Count the batch norms that each optimizer leaves in a model: ``python -m benchmarks.folding``.

onnxruntime, OnnxSlim, onnxoptimizer and onnxscript's rewriter, those that are installed, beside
cbn. "left" are the BatchNormalization nodes of the model that comes out; "nodes" are all of its
nodes. "error" is the largest difference of an output from the model that went in, both run by
onnxruntime without optimization on the same seeded input; "of" is the largest output.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.folding_patterns import PATTERNS, build

Optimize = Callable[[Path, Path], None]

LIGHT = ("densenet121", "inception_v2", "resnet50", "shufflenet")


@dataclass(frozen=True)
class Result:
    """What one optimizer made of one model; None where it failed."""

    model: str
    before: int
    optimizer: str
    left: int | None
    nodes: int | None
    error: float | None
    largest: float
    seconds: float
    failure: str = ""


def main(arguments: list[str] | None = None) -> None:
    """Read the options, fold each model with each optimizer, print a table or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.folding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models", nargs="*", type=Path, help="ONNX files (default: onnx's own light models)"
    )
    parser.add_argument(
        "--patterns", action="store_true", help="small graphs, one a pattern, in place of models"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)
    missing = [str(path) for path in options.models if not path.is_file()]
    if missing:
        parser.error(f"no such file: {', '.join(missing)}")
    if options.patterns:
        results = list(measure_patterns())
    else:
        results = [r for path in options.models or light_models() for r in measure(path)]
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    elif options.patterns:
        print(format_patterns(results))
    else:
        print(format_results(results))


def light_models() -> list[Path]:
    """The networks with batch norms that come with the onnx package."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return [folder / f"light_{name}.onnx" for name in LIGHT]


def measure_patterns() -> Iterator[Result]:
    """Optimize each of the small graphs."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (layers, shape) in PATTERNS.items():
            path = Path(folder, f"{name}.onnx")
            onnx.save(build(layers, shape), path)
            yield from measure(path)


def measure(path: Path) -> Iterator[Result]:
    """Optimize one model with everything that is installed."""
    before = count(path)[0]
    wanted = outputs(path)
    largest = max(float(np.abs(array).max()) for array in wanted)
    for name, (package, optimize) in OPTIMIZERS.items():
        if importlib.util.find_spec(package) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            after = Path(folder, "after.onnx")
            start = time.perf_counter()
            try:
                with silence():
                    optimize(path, after)
                seconds = time.perf_counter() - start
                left, nodes = count(after)
                yield Result(
                    path.stem,
                    before,
                    name,
                    left,
                    nodes,
                    apart(wanted, outputs(after)),
                    largest,
                    seconds,
                )
            except Exception as error:  # each has its own ways to fail; the table goes on
                seconds = time.perf_counter() - start
                failure = f"{type(error).__name__}: {error}".splitlines()[0]
                yield Result(path.stem, before, name, None, None, None, largest, seconds, failure)


def count(path: Path) -> tuple[int, int]:
    """Return how many batch norms, and how many nodes, a model has; constants are no nodes."""
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    constant = ("Constant", "ConstantOfShape")
    return kinds.count("BatchNormalization"), sum(kind not in constant for kind in kinds)


def outputs(path: Path) -> list[np.ndarray]:
    """Run a model on seeded inputs."""
    from cbn import export
    from cbn.export.inputs import random_inputs

    model = export.load(path)
    session = export.make_session(model, optimize=False)
    return session.run(None, random_inputs(model))


def apart(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Return the largest difference."""
    pairs = zip(wanted, found, strict=True)
    return max(float(np.abs(b.astype(float) - a).max()) for a, b in pairs)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what optimizers print out of the table."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def by_cbn(before: Path, after: Path) -> None:
    """Fold, without the proof: the others have none."""
    from cbn import export

    export.save(export.fold(before, prove=False).model, after)


def by_cbn_into_elementwise(before: Path, after: Path) -> None:
    """The same, with what can go nowhere else written as a Mul and an Add."""
    from cbn import export

    export.save(export.fold(before, into_elementwise=True, prove=False).model, after)


def by_onnxruntime(before: Path, after: Path) -> None:
    """onnxruntime's own optimizations that keep to ONNX's operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(after)
    onnxruntime.InferenceSession(str(before), options, providers=["CPUExecutionProvider"])


def by_onnxslim(before: Path, after: Path) -> None:
    """OnnxSlim with its defaults."""
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(before)), after)


def by_onnxoptimizer(before: Path, after: Path) -> None:
    """The fusions and eliminations of onnxoptimizer."""
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(before)), after)


def by_onnxscript(before: Path, after: Path) -> None:
    """onnxscript's rewriter with its default rules."""
    from onnxscript import rewriter

    onnx.save(rewriter.rewrite(onnx.load(before)), after)


OPTIMIZERS: dict[str, tuple[str, Optimize]] = {
    "onnxruntime": ("onnxruntime", by_onnxruntime),
    "OnnxSlim": ("onnxslim", by_onnxslim),
    "onnxoptimizer": ("onnxoptimizer", by_onnxoptimizer),
    "onnxscript": ("onnxscript", by_onnxscript),
    "cbn": ("cbn", by_cbn),
    "cbn, into_elementwise": ("cbn", by_cbn_into_elementwise),
}


def format_results(results: list[Result]) -> str:
    """Lay out a block a model, a line an optimizer."""
    from cbn.export.results import format_table

    rows: list[tuple[str, ...]] = []
    shown = ""
    for result in results:
        model = "" if result.model == shown else f"{result.model} ({result.before})"
        shown = result.model
        numbers = ("-", "-", result.failure, "-")
        if result.left is not None:
            numbers = (
                str(result.left),
                str(result.nodes),
                f"{result.error:.1e}",
                f"{result.largest:.1e}",
            )
        rows.append((model, result.optimizer, *numbers, f"{result.seconds:.1f}"))
    return format_table(("model (batch norms)", "", "left", "nodes", "error", "of", "s"), rows)


def format_patterns(results: list[Result]) -> str:
    """Lay out a line a pattern, a column an optimizer: what is left, and "wrong" where it is."""
    from cbn.export.results import format_table

    names = list(dict.fromkeys(result.optimizer for result in results))
    cells: dict[str, dict[str, str]] = {}
    for result in results:
        text = "failed" if result.left is None else str(result.left)
        # NaN is no number that a fold may keep or lose in silence.
        if result.error is not None and not result.error <= 1e-4 * result.largest:
            text += " wrong" if result.largest == result.largest else ""
        cells.setdefault(f"{result.model} ({result.before})", {})[result.optimizer] = text
    rows = [(model, *(found.get(name, "") for name in names)) for model, found in cells.items()]
    return format_table(("pattern (batch norms)", *names), rows)


if __name__ == "__main__":
    main()
