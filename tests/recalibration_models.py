"""Small networks to re-estimate, and what NumPy finds in them, in float64 and written out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_models
from onnx import helper

CHANNELS = onnx_models.CHANNELS
EPS = float(np.float32(1e-5))

SECOND = ("s2", "b2", "m2", "v2")


def two_layers(
    rank: int = 4,
    *,
    opset: int = 15,
    dtype: str = "float32",
    training: bool = False,
    batch: int | str = "N",
    layout: str | None = None,
) -> onnx.ModelProto:
    """x -> bn_h -> Relu -> mix of the channels -> bn_y -> y, over x of this rank."""
    arrays = parameters(dtype, rank)
    nodes = [
        onnx_models.batch_norm_node("x", "h", training=training, opset=opset),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv" if rank > 2 else "MatMul", ["r", "w"], ["z"]),
        onnx_models.batch_norm_node("z", "y", training=training, opset=opset, inputs=SECOND),
    ]
    shape = (batch, CHANNELS, *"LHWD"[: rank - 2])
    return onnx_models.make_model(nodes, shape=shape, arrays=arrays, dtype=dtype, opset=opset)


def parameters(dtype: str = "float32", rank: int = 4) -> dict[str, np.ndarray]:
    """Of `two_layers`: the second batch norm's have a 2 behind them, w mixes."""
    first = onnx_models.parameters(dtype=dtype)
    generator = np.random.default_rng(3)
    mixing = generator.normal(size=(CHANNELS, CHANNELS)).astype(dtype)
    second = {f"{name}2": np.roll(array, 1) for name, array in first.items()}
    return {**first, **second, "w": mixing.reshape(CHANNELS, CHANNELS, *[1] * (rank - 2))}


def images(count: int, rank: int = 4, *, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Seeded samples of shape (count, 3, ...), each with a brightness of its own."""
    generator = np.random.default_rng(seed)
    shape = (count, CHANNELS, *(5, 4, 3)[: rank - 2])
    own = generator.normal(size=(count, CHANNELS, *[1] * (rank - 2)))
    return (generator.normal(size=shape) + own + 0.5).astype(dtype)


@dataclasses.dataclass
class Seen:
    """Mean and population variance of all values of each channel."""

    mean: np.ndarray
    var: np.ndarray

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> Seen:
        values = np.concatenate([by_channel(array) for array in arrays], axis=1)
        return cls(values.mean(axis=1), values.var(axis=1))


def by_channel(x: np.ndarray) -> np.ndarray:
    """All values of each channel: (C, count)."""
    return np.moveaxis(np.asarray(x, np.float64), 1, 0).reshape(x.shape[1], -1)


def normalized(x: np.ndarray, seen: Seen, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A batch norm, in float64."""
    column = (-1, *[1] * (x.ndim - 2))
    factor = scale.astype(np.float64) / np.sqrt(seen.var + EPS)
    return (x - seen.mean.reshape(column)) * factor.reshape(column) + bias.reshape(column)


def mixed(h: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Relu and the mix of `two_layers`; MatMul has the channels of its input first."""
    matrix = w.reshape(CHANNELS, CHANNELS).astype(np.float64)
    return np.einsum("nc...,kc->nk...", np.maximum(h, 0), matrix if w.ndim > 2 else matrix.T)


def batch_rule(batches: Sequence[np.ndarray], dtype: str = "float32") -> list[Seen]:
    """Method "batch" in `two_layers`: each batch normalizes itself, and all values are pooled."""
    p = parameters(dtype, batches[0].ndim)
    inner = [
        mixed(normalized(x.astype(np.float64), Seen.of([x]), p["s"], p["b"]), p["w"])
        for x in batches
    ]
    return [Seen.of(batches), Seen.of(inner)]


def sequential_rule(x: np.ndarray, dtype: str = "float32") -> list[Seen]:
    """Method "sequential" in `two_layers`: the first layer's statistics are those of all data."""
    p = parameters(dtype, x.ndim)
    first = Seen.of([x])
    inner = mixed(normalized(x.astype(np.float64), first, p["s"], p["b"]), p["w"])
    return [first, Seen.of([inner])]


def error(found: Any, expected: Seen) -> float:
    """Largest distance: of means in deviations, of variances relative to what is expected."""
    deviation = np.sqrt(expected.var + EPS)
    mean = np.abs(found.mean - expected.mean) / deviation
    var = np.abs(found.var - expected.var) / expected.var
    return float(max(mean.max(), var.max()))


def cut(x: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Consecutive batches of these sizes."""
    edges = [0, *itertools.accumulate(sizes)]
    assert edges[-1] == len(x)
    return [x[a:b] for a, b in itertools.pairwise(edges)]


class Batches:
    """A source of given arrays for the input x, in order."""

    samples = None

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = list(arrays)
        self.batches = len(self.arrays)

    def numbered(self, start: int = 0) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        first = 0
        for index, array in enumerate(self.arrays):
            if index >= start:
                yield {"x": array}, first
            first += len(array)
