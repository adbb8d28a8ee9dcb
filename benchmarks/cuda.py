"""Prove and measure CUDA: ``python -m benchmarks.cuda``, on a machine with an NVIDIA GPU.

Runs the tests that are marked ``cuda``; then prints the largest error of onnxruntime's outputs
against float64, on CUDA beside the CPU; then the throughput of eval on arrays that stay on the GPU,
beside that of a copy on the GPU and of PyTorch's batch norm by cuDNN, measured in one run.

Needs onnxruntime-gpu and, for the throughput, a PyTorch with CUDA.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cuda_accuracy import Error, accuracy, format_errors

ROOT = Path(__file__).parents[1]

SHAPES = ((64, 64, 80, 80), (64, 256, 56, 56), (128, 64, 112, 112), (32, 32, 16, 64, 64))
"""105, 206, 411 and 268 MB in float32. In float16 each is twice as long in N."""

COPY = "copy on the GPU"
OURS = "onnxruntime, device-resident"
BAR = 0.9
CALLS = 20


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Gigabytes a second, read and written together, of the median round."""

    shape: tuple[int, ...]
    dtype: str
    megabytes: float
    rates: dict[str, float]

    @property
    def over_copy(self) -> float:
        """What part of the copy's throughput onnxruntime has."""
        return self.rates[OURS] / self.rates[COPY]


def main(arguments: list[str] | None = None) -> int:
    """Run it all; the exit code is 0 when the tests pass and every array reaches the bar."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=("tests", "accuracy", "throughput"), action="append", help="one part"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="the table of errors for the CPU alone; needs no GPU"
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing (default: 15)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"expected 1 or more rounds, got {options.rounds}")
    if options.cpu:
        show(accuracy(("cpu",)), [], options.json)
        return 0
    parts = options.only or ["tests", "accuracy", "throughput"]
    if lacking := missing(throughput="throughput" in parts):
        print(f"python -m benchmarks.cuda cannot run here: {lacking}", file=sys.stderr)
        return 2
    failed = "tests" in parts and run_tests() != 0
    errors = accuracy(("cpu", "cuda")) if "accuracy" in parts else []
    measured = list(throughputs(options.rounds)) if "throughput" in parts else []
    show(errors, measured, options.json)
    return int(failed or any(result.over_copy < BAR for result in measured))


def missing(*, throughput: bool = True) -> str:
    """Say what is lacking, in a line; empty where all is there."""
    found = []
    if throughput:
        try:
            import torch  # before onnxruntime: it brings the libraries of CUDA that both load
        except ImportError:
            found.append("PyTorch is not installed")
        else:
            if not torch.cuda.is_available():
                found.append(f"PyTorch {torch.__version__} finds no GPU")
    try:
        from cbn.export.sessions import why_no_cuda
    except ImportError as error:
        return "; ".join([str(error), *found])
    return "; ".join(filter(None, [why_no_cuda(), *found]))


def run_tests() -> int:
    """Run the tests marked ``cuda`` in this process' Python; their output goes to stderr."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-n", "0", "-q", "-rs", "tests"]
    return subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode


def throughputs(rounds: int) -> list[Throughput]:
    """Time eval of each shape in float32 and float16."""
    return [
        throughput((shape[0] * (2 if dtype == "float16" else 1), *shape[1:]), dtype, rounds)
        for dtype in ("float32", "float16")
        for shape in SHAPES
    ]


def throughput(shape: tuple[int, ...], dtype: str, rounds: int) -> Throughput:
    """Time the contenders on one array; they take turns, in a new order each round."""
    import torch

    import cbn
    from cbn import export
    from cbn.export.bound import BoundSession

    channels = shape[1]
    generator = np.random.default_rng(0)
    kind = cbn.BatchNorm2d if len(shape) == 4 else cbn.BatchNorm3d
    layer = kind(channels, dtype=dtype).eval()
    layer.running_mean[:] = generator.normal(size=channels)
    layer.running_var[:] = generator.uniform(0.5, 2, channels)
    x = generator.standard_normal(shape, dtype=np.float32).astype(dtype)
    bound = BoundSession(export.to_onnx(layer), {"x": x}, "cuda")
    given = torch.from_numpy(x).cuda()
    target = torch.empty_like(given)
    # cuDNN takes the parameters of 16-bit arrays in float32.
    mean, var, weight, bias = (
        torch.from_numpy(np.asarray(array, np.float32)).cuda()
        for array in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    calls: dict[str, Callable[[], Any]] = {
        COPY: lambda: target.copy_(given),
        OURS: lambda: bound.run(wait=False),
        "PyTorch, cuDNN": lambda: torch.cudnn_batch_norm(
            given, weight, bias, mean, var, False, 0.1, layer.eps
        ),
        "PyTorch, its own kernel": lambda: torch.native_batch_norm(
            given, weight, bias, mean, var, False, 0.1, layer.eps
        ),
    }
    with torch.no_grad():
        seconds = take_turns(calls, rounds, torch.cuda.synchronize)
    moved = 2 * x.nbytes / 1e9
    rates = {name: moved / value for name, value in seconds.items()}
    return Throughput(shape, dtype, x.nbytes / 1e6, rates)


def take_turns(
    calls: dict[str, Callable[[], Any]], rounds: int, wait: Callable[[], Any]
) -> dict[str, float]:
    """Return the median seconds of a call over the rounds, of some calls in a row each."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for number in range(rounds + 1):
        shuffle(order)
        for name in order:
            calls[name]()
            wait()
            start = time.perf_counter()
            for _ in range(CALLS):
                calls[name]()
            wait()
            if number:  # the first round is for warming up
                samples[name].append((time.perf_counter() - start) / CALLS)
    return {name: statistics.median(values) for name, values in samples.items()}


def show(errors: Sequence[Error], measured: Sequence[Throughput], as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        throughput_rows = [
            {**dataclasses.asdict(result), "over_copy": result.over_copy} for result in measured
        ]
        rows = [dataclasses.asdict(error) for error in errors]
        print(json.dumps({"errors": rows, "throughput": throughput_rows}, indent=2))
        return
    if errors:
        print(format_errors(errors))
    if measured:
        print(f"\nthroughput, GB/s; the bar is {BAR:.0%} of the copy")
        print(format_throughput(measured))


def format_throughput(measured: Sequence[Throughput]) -> str:
    """Lay out a line an array."""
    from cbn.export.results import format_table

    names = list(measured[0].rates)
    rows = [
        (
            "x".join(map(str, result.shape)),
            result.dtype,
            f"{result.megabytes:.0f}",
            *(f"{result.rates[name]:.0f}" for name in names),
            f"{result.over_copy:.2f}",
        )
        for result in measured
    ]
    return format_table(("shape", "type", "MB", *names, "over the copy"), rows)


if __name__ == "__main__":
    sys.exit(main())
