"""What is measured: a shape, a type, a layout and a mode, with the arrays that go with them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from benchmarks.channels import by_channel, moments

Layout = Literal["first", "last"]
Mode = Literal["train", "eval", "backward", "call"]

DTYPES = ("float32", "float64", "float16", "bfloat16")
LAYOUTS: tuple[Layout, ...] = ("first", "last")
MODES: tuple[Mode, ...] = ("train", "eval", "backward", "call")

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
CACHE_LINE = 64  # bytes
CALL_SHAPES: tuple[tuple[int, ...], ...] = ((1, 64), (8, 64), (1, 1024), (1, 64, 8, 8))


def aligned(x: np.ndarray) -> np.ndarray:
    """Return a copy in C order that begins with a cache line.

    NumPy's begin at any 16 bytes, by chance, and whether it is the same ones in x and in y makes up
    to a sixth of a time.
    """
    # not np.zeros: it would take other memory, without huge pages
    memory = np.empty(x.nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    array = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    array[...] = x
    return array


def buffer_like(x: np.ndarray) -> np.ndarray:
    """An output in use: of the memory that NumPy takes for new arrays, every page of it touched."""
    return aligned(np.broadcast_to(np.zeros((), x.dtype), x.shape))


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
    def element(self) -> np.dtype[Any]:
        """The type of x. NumPy has no bfloat16; ml_dtypes adds one."""
        if self.dtype == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.dtype)

    @property
    def parameter_dtype(self) -> str:
        """The type of the parameters and statistics: float32 beside a 16-bit x."""
        return "float32" if self.element.itemsize == 2 else self.dtype

    @property
    def nbytes(self) -> int:
        """Of x."""
        return math.prod(self.shape) * self.element.itemsize

    @property
    def megabytes(self) -> float:
        return self.nbytes / 1e6

    @property
    def least_bytes(self) -> int:
        """What must at least be moved: x read and y written; backward also reads dy."""
        return self.nbytes * (3 if self.mode == "backward" else 2)

    @property
    def channel_axis(self) -> int:
        return 1 if self.layout == "first" else len(self.shape) - 1

    @property
    def name(self) -> str:
        """The shape, as it is given on the command line."""
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.mode}, channels {self.layout}"


@dataclasses.dataclass(frozen=True)
class Gradient:
    """What a backward pass takes besides x: dy like x, and the statistics of x, of shape (C,)."""

    dy: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    rstd: np.ndarray


@dataclasses.dataclass(frozen=True)
class Data:
    """The arrays of a case: x in its layout, the others of shape (C,) and parameter_dtype."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray
    gradient: Gradient | None = None


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
    shape = case.shape
    if case.layout == "last":
        shape = (shape[0], *shape[2:], shape[1])

    def values(centre: float, spread: float) -> np.ndarray:
        array = rng.standard_normal(shape, np.float64 if case.dtype == "float64" else np.float32)
        array *= spread
        array += centre
        return aligned(array.astype(case.element, copy=False))

    def parameter(centre: float, spread: float) -> np.ndarray:
        drawn = centre + spread * rng.uniform(-1, 1, case.channels)
        return drawn.astype(case.parameter_dtype)

    x = values(mean, deviation)
    return Data(
        x=x,
        weight=parameter(1, 0.5),
        bias=parameter(0, 1),
        running_mean=parameter(mean, 0.1 * deviation),
        running_var=parameter(deviation**2, 0.1 * deviation**2),
        gradient=_gradient(case, x, values(0, 1)) if case.mode == "backward" else None,
    )


def _gradient(case: Case, x: np.ndarray, dy: np.ndarray) -> Gradient:
    mean, var = moments(by_channel(x, case.channel_axis), np.float64)
    statistics = (mean, var, 1 / np.sqrt(var + EPS))
    return Gradient(dy, *(array.astype(case.parameter_dtype) for array in statistics))
