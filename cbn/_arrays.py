"""What arrays are accepted, and how the kernels see them: the one place of validation.

The kernels know two layouts, both three-dimensional: "first", (N, C, L) with contiguous runs of L,
and "last", (A, B, C) with contiguous rows of C.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from ._dispatch import SPECIALISATIONS

__all__ = [
    "Pair",
    "as_array",
    "as_channel_array",
    "check_axis",
    "check_dtype",
    "check_eps",
    "check_momentum",
    "pair",
    "reject_channels",
    "single",
]


class Pair(NamedTuple):
    """x and y as the kernels take them, and y as the caller sees it."""

    layout: str
    x: np.ndarray
    y: np.ndarray
    result: np.ndarray


def _accepted() -> str:
    return " or ".join(str(dtype) for dtype in SPECIALISATIONS)


def check_dtype(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return `dtype` as one of the supported NumPy dtypes, or raise TypeError."""
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name}: expected {_accepted()}, got {dtype!r}") from None
    if result not in SPECIALISATIONS:
        shown = result.str if not result.isnative else result
        raise TypeError(f"{name}: expected {_accepted()}, got {shown}")
    return result


def _to_ndarray(value: Any, name: str) -> np.ndarray:
    """A NumPy view of what has ``__dlpack__``, ``__array__`` or the buffer protocol."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: {type(value).__name__} cannot be read through __dlpack__: {error}"
            ) from error
    if hasattr(value, "__array_interface__") or hasattr(value, "__array__"):
        return np.asarray(value)
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: expected an array (NumPy, buffer protocol or __dlpack__), "
            f"got {type(value).__name__}"
        ) from None


def as_array(value: Any, name: str = "x") -> np.ndarray:
    """A NumPy view of `value`, of a supported dtype."""
    array = _to_ndarray(value, name)
    if array.dtype not in SPECIALISATIONS:
        check_dtype(array.dtype, name)
    return array


def as_channel_array(value: Any, channels: int, name: str, *, writable: bool = False) -> np.ndarray:
    """A NumPy view of a one-dimensional float array with one value a channel."""
    array = _to_ndarray(value, name)
    if array.dtype.kind != "f" or not array.dtype.isnative:
        raise TypeError(f"{name}: expected a floating-point array, got {array.dtype}")
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), got {array.shape}")
    if writable and not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    return array


def check_eps(eps: float) -> float:
    """Return `eps` as a float that is finite and not negative."""
    value = _to_float(eps, "eps")
    if not 0 <= value < np.inf:
        raise ValueError(f"eps: expected a finite number >= 0, got {value}")
    return value


def check_momentum(momentum: float | None, *, none: bool = False) -> float | None:
    """Return `momentum` as a float in [0, 1], or None where that is accepted."""
    accepted = "a number from 0 to 1" + (" or None" if none else "")
    if momentum is None and none:
        return None
    value = _to_float(momentum, "momentum", accepted)
    if not 0 <= value <= 1:
        raise ValueError(f"momentum: expected {accepted}, got {value}")
    return value


def _to_float(value: Any, name: str, accepted: str = "a number") -> float:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected {accepted}, got {type(value).__name__}")
    return float(value)


def check_axis(axis: int, ndim: int) -> int:
    """Return the axis of the channels as an int from 0 to ndim - 1."""
    try:
        value = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis: expected an int, got {type(axis).__name__}") from None
    if ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions (N, C), got {ndim}")
    if not -ndim <= value < ndim:
        raise ValueError(f"axis: expected {-ndim} to {ndim - 1} for {ndim} dimensions, got {value}")
    return value % ndim


def reject_channels(bad: np.ndarray, values: np.ndarray, name: str, accepted: str) -> None:
    """Raise ValueError that names the first channel of `bad`, and its value."""
    if bad.any():
        channel = int(np.argmax(bad))
        raise ValueError(
            f"{name}: expected {accepted}, got {values[channel]} at channel {channel}"
            + (f" ({int(bad.sum())} channels in all)" if bad.sum() > 1 else "")
        )


def _reshape(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        return x.reshape(shape, copy=False)
    except ValueError:
        return None


def _contiguous_inside(x: np.ndarray | None) -> np.ndarray | None:
    if x is None or (x.shape[-1] > 1 and x.strides[-1] != x.itemsize):
        return None
    # A stride that is no multiple of the item size (a field of a structured array) is not one of
    # the kernels' strides.
    if any(stride % x.itemsize for stride in x.strides):
        return None
    return x if x.flags.aligned else None


def view(x: np.ndarray, axis: int, layout: str) -> np.ndarray | None:
    """x in the kernels' three dimensions without a copy, or None where that cannot be."""
    shape = x.shape
    if layout == "first":
        channels = shape[axis]
        before = int(np.prod(shape[:axis]))
        return _contiguous_inside(_reshape(x, (before, channels, x.size // (before * channels))))
    moved = np.moveaxis(x, axis, -1)
    channels = moved.shape[-1]
    rows = _reshape(moved, (1, x.size // channels, channels))
    if rows is None:
        rows = _reshape(moved, (moved.shape[0], -1, channels))
    return _contiguous_inside(rows)


def _layouts(x: np.ndarray, axis: int) -> tuple[str, str]:
    """The layouts in the order in which to try them: (N, C) and its like are rows."""
    channels, before = x.shape[axis], int(np.prod(x.shape[:axis]))
    return ("last", "first") if before * channels == x.size else ("first", "last")


def _shares_memory_with_itself(array: np.ndarray) -> bool:
    """Whether values may overlap: in every view of an array, an axis steps over the inner ones."""
    reach = array.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)):
        if n > 1:
            if stride < reach:
                return True
            reach += stride * (n - 1)
    return False


def _check_out(out: Any, x: np.ndarray) -> np.ndarray:
    array = as_array(out, "out")
    if array.shape != x.shape:
        raise ValueError(f"out: expected shape {x.shape}, got {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"out: expected {x.dtype}, like x, got {array.dtype}")
    if not array.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")
    same = (
        array.__array_interface__["data"][0] == x.__array_interface__["data"][0]
        and array.strides == x.strides
    )
    if not same and np.may_share_memory(array, x):
        raise ValueError("out: overlaps x; expected x itself or memory apart from it")
    if not array.flags.aligned:
        raise ValueError(f"out: expected memory aligned to its dtype, {array.dtype}")
    if _shares_memory_with_itself(array):
        raise ValueError(f"out: its values share memory (strides {array.strides})")
    return array


def single(x: np.ndarray, axis: int) -> tuple[str, np.ndarray]:
    """The layout of x and x in it; a copy where no layout fits.

    Raises
    ------
    ValueError
        Where x holds no value.
    """
    if x.size == 0:
        raise ValueError(f"x: expected at least one value, got shape {x.shape}")
    for layout in _layouts(x, axis):
        x3 = view(x, axis, layout)
        if x3 is not None:
            return layout, x3
    return single(np.array(x, order="C"), axis)  # aligned too


def pair(x: np.ndarray, out: Any, axis: int) -> Pair:
    """x and its result in one layout; x is copied where no layout fits it, `out` never.

    Raises
    ------
    ValueError, TypeError
        Where x holds no value, or `out` has another shape or dtype, is read-only, overlaps x
        without being x, or has strides that no layout serves.
    """
    if out is None:
        layout, x3 = single(x, axis)
        result = np.empty_like(x)  # in x's order of axes
        if (y3 := view(result, axis, layout)) is None:  # x was copied
            result = np.empty(x.shape, x.dtype)
            return Pair(layout, x3, single(result, axis)[1], result)
        return Pair(layout, x3, y3, result)
    y = _check_out(out, x)
    if x.size == 0:
        raise ValueError(f"x: expected at least one value, got shape {x.shape}")
    views = [(layout, view(y, axis, layout)) for layout in _layouts(x, axis)]
    usable = [(layout, y3) for layout, y3 in views if y3 is not None]
    if not usable:
        raise ValueError(
            f"out: strides {y.strides} of shape {y.shape} serve no layout; expected the channels, "
            "or what follows them, to be contiguous"
        )
    for layout, y3 in usable:
        if (seen := view(x, axis, layout)) is not None:
            return Pair(layout, seen, y3, y)
    layout, y3 = usable[0]
    source = np.moveaxis(x, axis, -1) if layout == "last" else x
    return Pair(layout, np.array(source, order="C").reshape(y3.shape), y3, y)
