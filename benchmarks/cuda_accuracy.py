"""The error of onnxruntime's batch norm against float64, by provider, opset, rank and type."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

RANKS = (2, 3, 4, 5)
DTYPES = ("float32", "float16")
CHANNELS = 7
SIZES = {
    2: (96, CHANNELS),
    3: (16, CHANNELS, 33),
    4: (8, CHANNELS, 9, 10),
    5: (4, CHANNELS, 5, 6, 7),
}
EPS = 1e-5

Mode = Literal["eval", "training"]


@dataclasses.dataclass(frozen=True)
class Error:
    """What one case came to: ULP of the largest term, by provider; None where it does not run."""

    mode: Mode
    dtype: str
    rank: int
    opset: int
    max_ulp: dict[str, float | None]
    reasons: dict[str, str]


def accuracy(providers: Sequence[str], opsets: Sequence[int] | None = None) -> list[Error]:
    """Measure every case on each provider; all opsets from 7 on unless some are given."""
    return list(_measure(providers, opsets))


def _measure(providers: Sequence[str], opsets: Sequence[int] | None) -> Iterator[Error]:
    from cbn.export.opsets import OLDEST_BUILT, newest_opset

    chosen = range(OLDEST_BUILT, newest_opset() + 1) if opsets is None else opsets
    modes: tuple[Mode, ...] = ("eval", "training")
    for mode in modes:
        for dtype in DTYPES:
            for rank in RANKS:
                for opset in chosen:
                    yield measure(mode, dtype, rank, opset, providers)


def measure(mode: Mode, dtype: str, rank: int, opset: int, providers: Sequence[str]) -> Error:
    """Measure one case; a model in training mode is spelled out by ``cbn.export.lower`` first."""
    from cbn import export
    from cbn.export.sessions import run_session

    x, arrays = data(rank, dtype)
    model: Any = build(mode, dtype, rank, opset, arrays)
    if mode == "training":
        model = export.lower(model, prove=False).model
    found: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for provider in providers:
        try:
            y = run_session(export.make_session(model, provider, optimize=False), {"x": x}, ["y"])
            found[provider] = max_ulp(mode, x, arrays, y["y"])
        except (export.ModelError, export.ProviderError) as error:
            found[provider], reasons[provider] = None, str(error)
    return Error(mode, dtype, rank, opset, found, reasons)


def data(rank: int, dtype: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Seeded values of mean 1 and deviation 2, and parameters."""
    generator = np.random.default_rng(rank)
    x = generator.normal(1, 2, SIZES[rank]).astype(dtype)
    return x, {
        "scale": generator.uniform(0.5, 2, CHANNELS).astype(dtype),
        "B": generator.normal(size=CHANNELS).astype(dtype),
        "mean": generator.normal(1, 0.5, CHANNELS).astype(dtype),
        "var": generator.uniform(1, 6, CHANNELS).astype(dtype),
    }


def build(mode: Mode, dtype: str, rank: int, opset: int, arrays: dict[str, np.ndarray]) -> Any:
    """One BatchNormalization node from x to y, by onnx's own helpers."""
    from onnx import helper, numpy_helper

    from cbn.export.opsets import ir_version_for, version_at

    version = version_at(opset)
    training = mode == "training"
    attributes: dict[str, Any] = {"epsilon": EPS}
    outputs = ["y"]
    if training and version.mode_from == "training_mode":
        attributes["training_mode"] = 1
    if training:
        outputs += [f"y_{name}" for name in version.outputs[1:]]
    node = helper.make_node("BatchNormalization", ["x", *arrays], outputs, name="bn", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = outputs[:3]
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info("x", kind, SIZES[rank])],
        [helper.make_tensor_value_info(name, kind, None) for name in given],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version_for(opset))


def max_ulp(mode: Mode, x: np.ndarray, arrays: dict[str, np.ndarray], y: np.ndarray) -> float:
    """The largest error of y in ULP of the largest of x * a, mean * a, B and y, in y's type."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    x = x.astype(np.float64)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    mean, var = (x.mean(axes), x.var(axes)) if mode == "training" else (wide["mean"], wide["var"])
    column = (-1, *[1] * (x.ndim - 2))
    mean, var, scale, bias = (a.reshape(column) for a in (mean, var, wide["scale"], wide["B"]))
    factor = scale / np.sqrt(var + float(np.float32(EPS)))
    expected = (x - mean) * factor + bias
    terms = np.broadcast_arrays(x * factor, mean * factor, bias, expected)
    largest = np.maximum.reduce([np.abs(term) for term in terms])
    unit = np.spacing(largest.astype(y.dtype)).astype(np.float64)
    return float((np.abs(y.astype(np.float64) - expected) / unit).max())


def format_errors(errors: Sequence[Error]) -> str:
    """Lay out a line for mode, type and rank: the largest error of all opsets, by provider."""
    from cbn.export.results import format_table

    providers = list(errors[0].max_ulp)
    groups: dict[tuple[str, str, int], list[Error]] = {}
    for error in errors:
        groups.setdefault((error.mode, error.dtype, error.rank), []).append(error)
    rows = []
    notes: dict[str, None] = {}
    for (mode, dtype, rank), group in groups.items():
        opsets = sorted(error.opset for error in group)
        cells = []
        for provider in providers:
            known = [v for e in group if (v := e.max_ulp[provider]) is not None]
            lost = [e for e in group if e.max_ulp[provider] is None]
            cell = f"{max(known):.2f}" if known else "-"
            if lost and known:
                cell += f" ({len(lost)} opsets do not run)"
            cells.append(cell)
            notes.update(dict.fromkeys(f"{provider}: {e.reasons[provider]}" for e in lost))
        name = "training, lowered" if mode == "training" else mode
        rows.append((name, dtype, str(rank), f"{opsets[0]}-{opsets[-1]}", *cells))
    header = ("mode", "type", "rank", "opsets", *(f"max ULP, {name}" for name in providers))
    return "\n".join([format_table(header, rows), *list(notes)[:5]])
