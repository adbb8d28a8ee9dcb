"""One rounding from float64 to the type of a weight, refused where the type cannot hold it."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .reasons import Refusal

__all__ = ["round_once"]


_SWITCHED_OFF = 1e-30  # no size that a channel in use has


def round_once(exact: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """Round float64 values to `dtype`, to nearest even and once.

    Raises
    ------
    Refusal
        When a value overflows the type, or the largest of them falls below the smallest that the
        type holds at full precision. Of a float16 kernel, (M, ...) of rank 3 or more, this counts
        for each of the M by itself where it loses precision, unless that is one number, as in a
        bias. Other types hold 1e-38: what is below it is a channel that training has switched off.
    """
    with np.errstate(over="ignore"):
        rounded = _odd_float32(exact).astype(dtype) if dtype.itemsize == 2 else exact.astype(dtype)
    largest = float(np.abs(exact).max(initial=0.0))
    # ml_dtypes has no type hints for it
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise Refusal(
            f"folded, {what} would reach {largest:.3g}, beyond {dtype.name}'s {limits.max:.3g}"
        )
    normal = float(limits.smallest_normal)
    if 0 < largest < normal:
        raise Refusal(
            f"folded, {what} would be at most {largest:.3g}, below {dtype.name}'s smallest normal "
            f"number {normal:.3g}"
        )
    channel = _lost_channel(exact, rounded, normal, float(limits.eps) / 2)
    if channel is not None:
        raise Refusal(
            f"folded, {what} would be at most {np.abs(exact[channel]).max():.3g} in channel "
            f"{channel}, below {dtype.name}'s smallest normal number {normal:.3g}"
        )
    return np.asarray(rounded)


def _lost_channel(exact: np.ndarray, rounded: np.ndarray, normal: float, unit: float) -> int | None:
    """Return the first index along axis 0 whose numbers are all too small to be rounded well."""
    if normal < _SWITCHED_OFF or exact.ndim < 3 or exact.size <= len(exact):
        return None
    axes = tuple(range(1, exact.ndim))
    sizes = np.abs(exact).max(axis=axes)
    errors = np.abs(rounded.astype(np.float64) - exact).max(axis=axes)
    lost = np.flatnonzero((sizes < normal) & (errors > unit * sizes))
    return int(lost[0]) if lost.size else None


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
