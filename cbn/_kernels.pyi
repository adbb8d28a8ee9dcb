from collections.abc import Mapping
from typing import Any

import numpy as np

# Fused functions: indexed by the C name of the element type ("float", "double").
stats_first: Mapping[str, Any]
stats_last: Mapping[str, Any]
train_first: Mapping[str, Any]
train_last: Mapping[str, Any]
scale_first: Mapping[str, Any]
scale_last: Mapping[str, Any]

def fuse(
    mean: np.ndarray,
    variance: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    coefficients_: np.ndarray,
    single: bool,
) -> None: ...
def build() -> dict[str, int]: ...
