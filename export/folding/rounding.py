"""One rounding from float64 to the type of a weight, refused where the type cannot hold it."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .reasons import Refusal

__all__ = ["round_once"]


def round_once(exact: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """Round float64 values to `dtype`, to nearest even and once.

    Raises
    ------
    Refusal
        When a value overflows the type, or the largest of them falls below the smallest that the
        type holds at full precision.
    """
    with np.errstate(over="ignore"):
        rounded = _odd_float32(exact).astype(dtype) if dtype.itemsize == 2 else exact.astype(dtype)
    largest = float(np.abs(exact).max(initial=0.0))
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise Refusal(
            f"folded, {what} would reach {largest:.3g}, beyond {dtype.name}'s {limits.max:.3g}"
        )
    if 0 < largest < float(limits.smallest_normal):
        raise Refusal(
            f"folded, {what} would be at most {largest:.3g}, below {dtype.name}'s smallest normal "
            f"number {limits.smallest_normal:.3g}"
        )
    return np.asarray(rounded)


def _odd_float32(exact: np.ndarray) -> np.ndarray:
    """Round to float32 to odd: a second rounding, to 16 bits, is then that of the exact value.

    ml_dtypes goes from float64 to bfloat16 by way of float32, and so may round twice.
    Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008.
    """
    nearest = exact.astype(np.float32)
    back = nearest.astype(np.float64)
    toward = np.where(exact > back, np.inf, -np.inf).astype(np.float32)
    even = (nearest.view(np.uint32) & 1) == 0
    inexact = (back != exact) & np.isfinite(nearest)
    return np.where(inexact & even, np.nextafter(nearest, toward), nearest)
