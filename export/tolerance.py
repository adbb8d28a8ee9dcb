"""The one table of tolerances, each derived, and the measure that they are stated in.

Errors are counted in ULP of the largest term: the distance between neighbouring floats at the size
of the largest number that the formula adds up, for each element. An ULP of the result itself would
be no fair unit: where the terms cancel, no arithmetic of that type gets it right.

Below, u is the unit roundoff (2**-24 in float32), T the largest term, and u * T <= ulp(T) always.
The method is the standard one: N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
SIAM 2002, chapters 3 (each operation adds u of its result) and 4 (sums).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = [
    "CBN_ULP",
    "EVAL_CUDA_ULP",
    "EVAL_ULP",
    "Agreement",
    "compare",
    "in_type",
    "mean_error_squared",
    "output_ulp",
    "running_ulp",
    "summation_depth",
    "tf32_output_ulp",
    "training_ulp",
    "ulp",
]

CBN_ULP = 3
"""What cbn's own output may differ from the exact one."""

EVAL_ULP = 12 + CBN_ULP
"""A node with stored statistics.

onnxruntime computes a = scale / sqrt(var + eps), then x * a + (B - mean * a), all in X's type.
a: one rounding each for the sum (halved by the root), the root, the inverse and the product,
3.5 u in all, which acts on (x - mean) * a, at most 2 T: 7 u T. Then mean * a: u T; B minus it, at
most 2 T: 2 u T; x * a: u T; the last sum: u T. Together 12 u T.
"""

EVAL_CUDA_ULP = 16 + CBN_ULP
"""The same on the CUDA provider, which has cuDNN do it: in float32 also for 16-bit types.

cuDNN does not say in which order. CUDA's inverse root is within 2 ULP, 4 u (CUDA C++ Programming
Guide, mathematical functions). As (x - mean) * (scale / sqrt(var + eps)) + B: var + eps (halved by
the root) 0.5 u, the inverse root 4 u, its product with scale u, the subtraction u, the product u:
7.5 u of (x - mean) * a, at most 2 T: 15 u T; the last sum: u T. As x * a + (B - mean * a): 5.5 u of
at most 2 T: 11 u T; the others, as on the CPU: 5 u T. Together 16 u T either way. TF32 has no part
in it: it is for convolutions and matrix products. Nor is epsilon raised: cuDNN's least
(CUDNN_BN_MIN_EPSILON) is 0 since 7.5, and the onnxruntime that cbn works with is built with 9.
"""

_SECOND_ORDER_ULP = 8
_VECTOR_BYTES = 16  # of the smallest vector registers, which make the longest chains


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two arrays are apart, and how far they may be.

    Attributes
    ----------
    max_abs_error : float
        In the unit of the values; infinite where one alone is NaN or infinite, or shapes differ.
    max_ulp_error : float
        The same in ULP of the largest term, the worst over all elements.
    tolerance : float
        What `max_ulp_error` may be.
    """

    max_abs_error: float
    max_ulp_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_ulp_error <= self.tolerance

    @property
    def ratio(self) -> float:
        """The error as a part of the tolerance."""
        if self.max_ulp_error == 0:
            return 0.0
        return self.max_ulp_error / self.tolerance if self.tolerance else math.inf


def compare(
    actual: np.ndarray, expected: np.ndarray, largest_term: np.ndarray | float, tolerance: float
) -> Agreement:
    """Measure `actual` against `expected`.

    Parameters
    ----------
    actual, expected : numpy.ndarray
        Of the same floating-point type, which the ULP belongs to.
    largest_term : numpy.ndarray or float
        The size of the largest term of each element; broadcasts.
    tolerance : float
        In ULP of it.

    Returns
    -------
    Agreement
        NaN equals NaN in the same place, and an infinity one of the same sign.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return Agreement(math.inf, math.inf, tolerance)
    if not actual.size:
        return Agreement(0.0, 0.0, tolerance)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        error[actual == expected] = 0
        error[np.isnan(actual) & np.isnan(expected)] = 0
        error[np.isnan(error)] = math.inf
        units = np.where(error == 0, 0, error / ulp(largest_term, actual.dtype))
    return Agreement(float(error.max()), float(units.max()), tolerance)


def ulp(size: np.ndarray | float, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the distance from `size` to the next number of a floating-point type, in float64.

    That of the largest numbers where `size` is infinite or NaN.
    """
    largest = float(np.finfo(dtype).max) / 2  # the spacing at the very last one is infinite
    capped = np.fmin(np.asarray(size, np.float64), largest).astype(dtype)
    return np.asarray(np.spacing(capped), np.float64)


def summation_depth(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bound how many additions one value of a channel goes through in onnxruntime's sums.

    Its kernel sums each row of L values in two accumulators of a vector register each, then adds
    the N rows one by one.

    Parameters
    ----------
    shape : tuple of int
        X's: (N, C, ...).
    dtype : numpy.dtype
        The type that it accumulates in.
    """
    rows, length = shape[0], math.prod(shape[2:])
    lanes = 2 * _VECTOR_BYTES // dtype.itemsize
    return math.ceil(length / lanes) + lanes.bit_length() + rows


def training_ulp(depth: int) -> int:
    """Tolerance of Y for a node that takes its statistics from the batch.

    To the 12 u T of stored statistics come the errors of the statistics, which onnxruntime sums in
    X's type (cbn sums in float64):

    - mean: (depth + 1) u of the mean of |x|, at most of rms = sqrt(mean^2 + var). It enters as
      |a| * rms, which therefore is one of the terms.
    - var, from the squares around that mean: (depth + 4) u of itself, of which half reaches a:
      (depth + 4) u T. The error of the mean adds its square to var, so to (x - mean) * a the part
      ((depth + 1) u rms)^2 / (2 (var + eps)). It matters where rms is hundreds of deviations;
      `mean_error_squared` makes it a term, with 8 ULP.
    """
    return EVAL_ULP + 2 * depth + 5 + _SECOND_ORDER_ULP


def running_ulp(depth: int) -> int:
    """Tolerance of the running statistics: those of the batch, blended with three roundings.

    Largest terms: momentum * old, (1 - momentum) * rms for the mean, (1 - momentum) * var and its
    `mean_error_squared` for the variance. The depth + 4 is that of the variance, see
    `training_ulp`; three products and the sum add 5, cbn's own rounding 1.
    """
    return depth + 10 + _SECOND_ORDER_ULP


def mean_error_squared(rms: np.ndarray, depth: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the term whose 8 ULP bound what the mean's squared error adds to the variance."""
    unit = float(np.finfo(dtype).eps) / 2
    return np.asarray((depth + 1) ** 2 * unit * np.square(rms) / _SECOND_ORDER_ULP)


def in_type(bound: float, dtype: np.dtype[Any]) -> float:
    """Turn a tolerance of the working type into one of the type of the values.

    16-bit values are read and written in place of float32, in onnxruntime and in cbn: what is left
    of float32's ULP in theirs, and one for the two roundings at the end.
    """
    if dtype.itemsize >= 4:
        return float(bound)
    return 1 + bound * float(np.finfo(np.float32).eps) / float(np.finfo(dtype).eps)


def output_ulp(nodes: int, dtype: np.dtype[Any]) -> float:
    """Tolerance of a model's output between onnxruntime's optimization off and on.

    In ULP of the largest value of the output. Optimization changes the order of sums and rounds
    folded weights anew, so each node's result moves by some ULP of its largest value: 32 covers
    sums of a thousand products (32 = sqrt(1024): independent roundings add like a random walk,
    Higham and Mary, SIAM J. Sci. Comput. 41, 2019). By the same law those of n nodes add up to
    sqrt(n) of it. Never more than 1/64 of the largest value, so that the check can fail in float16.
    """
    return min(32 * math.sqrt(max(nodes, 1)), 1 / (64 * float(np.finfo(dtype).eps)))


def tf32_output_ulp() -> float:
    """Tolerance of a float32 output, as ``output_ulp``, where CUDA rounds to TF32.

    TF32 has float16's 10 bits, so `output_ulp` of float16: already one operator may take up all of
    it, 1/64 of the largest value. It is stated in ULP of float32.
    """
    ratio = float(np.finfo(np.float16).eps) / float(np.finfo(np.float32).eps)
    return output_ulp(1, np.dtype(np.float16)) * ratio
