"""What is measured: a shape, a type, a layout and a mode, with the arrays that go with them."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

Layout = Literal["first", "last"]
Mode = Literal["train", "eval", "call"]

EPS = float(np.float32(1e-5))  # an ONNX attribute is a float32: the same number for all
MOMENTUM = 0.1  # PyTorch's convention: the weight of the new value

# (N, C, ...) whatever the layout; from a fully connected layer to video.
DEFAULT_SHAPES: tuple[tuple[int, ...], ...] = (
    (4096, 1024),
    (8, 128, 512),
    (1, 64, 56, 56),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (8, 2048, 7, 7),
    (64, 3, 224, 224),
    (2, 64, 16, 56, 56),
)
CALL_SHAPES: tuple[tuple[int, ...], ...] = ((1, 64),)


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure. ``shape`` is (N, C, ...) in both layouts."""

    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    mode: Mode
    threads: int

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def training(self) -> bool:
        return self.mode == "train"

    @property
    def megabytes(self) -> float:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize / 1e6

    @property
    def channel_axis(self) -> int:
        return 1 if self.layout == "first" else len(self.shape) - 1

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))


@dataclasses.dataclass(frozen=True)
class Data:
    """The arrays of a case: x in its layout, the others of shape (C,), all of its type."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray


def parse_shape(text: str) -> tuple[int, ...]:
    """Read "32x64x56x56" (or with commas)."""
    try:
        shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        shape = ()
    if not 2 <= len(shape) <= 5 or min(shape) < 1:
        raise ValueError(f"expected 2 to 5 positive sizes such as 32x64x56x56, got {text!r}")
    return shape


def make_data(case: Case, mean: float = 0.0, deviation: float = 1.0) -> Data:
    """Draw seeded normal values; the running statistics are close to those of x."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(case.dtype)
    shape = case.shape
    if case.layout == "last":
        shape = (shape[0], *shape[2:], shape[1])
    x = rng.standard_normal(shape, dtype)
    x *= deviation
    x += mean
    channels = case.channels

    def draw(centre: float, spread: float) -> np.ndarray:
        return (centre + spread * rng.uniform(-1, 1, channels)).astype(dtype)

    return Data(
        x=x,
        weight=draw(1, 0.5),
        bias=draw(0, 1),
        running_mean=draw(mean, 0.1 * deviation),
        running_var=draw(deviation**2, 0.1 * deviation**2),
    )
