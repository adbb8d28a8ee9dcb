from collections.abc import Mapping
from typing import Any

import numpy as np

# Fused functions: indexed by the C name of the element type ("float", "double", "ushort").
stats: Mapping[str, Any]
train: Mapping[str, Any]
backward: Mapping[str, Any]
scale: Mapping[str, Any]
move: Mapping[str, Any]

class AffineMap:
    def _prepare(
        self,
        values: np.ndarray,
        dtype: np.dtype[Any],
        last: bool,
        activation: int,
        slope: float,
        ranks: tuple[int, int],
        watched: tuple[np.ndarray, ...],
        threads: tuple[int, int, bool],
    ) -> None: ...
    def _attempt(self, x: Any, out: Any = None) -> Any: ...
    def __call__(self, x: Any, out: Any = None, residual: Any = None) -> np.ndarray: ...

class BatchNormCall:
    def _prepare(
        self,
        channels: int,
        dtype: np.dtype[Any],
        last: bool,
        ranks: tuple[int, int],
        threads: tuple[int, int, bool],
        state: tuple[np.ndarray | None, ...],
    ) -> None: ...
    def train(
        self, x: Any, out: Any, eps: float, momentum: float
    ) -> tuple[np.ndarray, np.ndarray, bool] | None: ...
    def evaluate(self, x: Any, out: Any, eps: float) -> np.ndarray | None: ...
    def gradient(
        self, dy: Any, x: np.ndarray, out: Any, moments: np.ndarray, eps: float
    ) -> tuple[np.ndarray, np.ndarray] | None: ...
    def gradient_of(
        self, dy: Any, x: np.ndarray, out: Any, frozen: bool
    ) -> tuple[np.ndarray, np.ndarray] | None: ...
    def moments(self, x: Any) -> np.ndarray | None: ...

def fuse(
    mean: np.ndarray,
    variance: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    coefficients_: np.ndarray,
    single: bool,
) -> None: ...
def processors() -> int: ...
def build() -> dict[str, Any]: ...
def table() -> object: ...
