"""What arrays are accepted, and how the kernels see them: the one place of validation.

The kernels know two layouts, both three-dimensional: "first", (N, C, L) with contiguous runs of L,
and "last", (A, B, C) with contiguous rows of C.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ._dispatch import accepted_dtypes, element_of

__all__ = [
    "Arranged",
    "arrange",
    "as_array",
    "as_channel_array",
    "check_axis",
    "check_dtype",
    "check_eps",
    "check_momentum",
    "reject_channels",
    "single",
    "to_float",
    "to_ndarray",
]


class Arranged(NamedTuple):
    """Arrays as the kernels take them, all in one layout."""

    layout: str
    inputs: list[np.ndarray]
    out: np.ndarray
    result: np.ndarray  # `out` as the caller sees it


def check_dtype(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return `dtype` as one of the supported NumPy dtypes, or raise TypeError."""
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name}: expected {accepted_dtypes()}, got {dtype!r}") from None
    if element_of(result) is None:
        shown = result.str if not result.isnative else result
        raise TypeError(f"{name}: expected {accepted_dtypes()}, got {shown}")
    return result


def to_ndarray(value: Any, name: str) -> np.ndarray:
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
    array = to_ndarray(value, name)
    if element_of(array.dtype) is None:
        check_dtype(array.dtype, name)
    return array


def as_channel_array(value: Any, channels: int, name: str, *, writable: bool = False) -> np.ndarray:
    """A NumPy view of a one-dimensional float array with one value a channel."""
    array = to_ndarray(value, name)
    if element_of(array.dtype) is None and not (array.dtype.kind == "f" and array.dtype.isnative):
        raise TypeError(f"{name}: expected a floating-point array, got {array.dtype}")
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), got {array.shape}")
    if writable and not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    return array


def check_eps(eps: float) -> float:
    """Return `eps` as a float that is finite and not negative."""
    value = to_float(eps, "eps")
    if not 0 <= value < np.inf:
        raise ValueError(f"eps: expected a finite number >= 0, got {value}")
    return value


def check_momentum(momentum: float | None, *, none: bool = False) -> float | None:
    """Return `momentum` as a float in [0, 1], or None where that is accepted."""
    accepted = "a number from 0 to 1" + (" or None" if none else "")
    if momentum is None and none:
        return None
    value = to_float(momentum, "momentum", accepted)
    if not 0 <= value <= 1:
        raise ValueError(f"momentum: expected {accepted}, got {value}")
    return value


def to_float(value: Any, name: str, accepted: str = "a number") -> float:
    """Return `value` as a float, or raise TypeError; a string is no number."""
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


def _check_out(out: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    array = as_array(out, "out")
    x = next(iter(inputs.values()))
    if array.shape != x.shape:
        raise ValueError(f"out: expected shape {x.shape}, got {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"out: expected {x.dtype}, like x, got {array.dtype}")
    if not array.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")
    for name, other in inputs.items():
        same = array.ctypes.data == other.ctypes.data and array.strides == other.strides
        if not same and np.may_share_memory(array, other):
            raise ValueError(
                f"out: overlaps {name}; expected {name} itself or memory apart from it"
            )
    if not array.flags.aligned:
        raise ValueError(f"out: expected memory aligned to its dtype, {array.dtype}")
    if _shares_memory_with_itself(array):
        raise ValueError(f"out: its values share memory (strides {array.strides})")
    return array


def _copied(x: np.ndarray, axis: int, layout: str) -> np.ndarray:
    """A copy of x in the kernels' three dimensions, aligned and in C order."""
    channels = x.shape[axis]
    if layout == "last":
        return np.array(np.moveaxis(x, axis, -1), order="C").reshape(1, -1, channels)
    before = int(np.prod(x.shape[:axis]))
    return np.array(x, order="C").reshape(before, channels, -1)


def single(x: np.ndarray, axis: int) -> tuple[str, np.ndarray]:
    """The layout of x and x in it; a copy where no layout fits.

    Raises
    ------
    ValueError
        Where x holds no value.
    """
    if x.size == 0:
        raise ValueError(f"x: expected at least one value, got shape {x.shape}")
    layouts = _layouts(x, axis)
    for layout in layouts:
        if (seen := view(x, axis, layout)) is not None:
            return layout, seen
    return layouts[0], _copied(x, axis, layouts[0])


def arrange(inputs: Mapping[str, np.ndarray], out: Any, axis: int) -> Arranged:
    """Inputs of one shape and dtype, by name, and their result, in one layout.

    An input is copied where that layout does not fit it; `out` never is.

    Raises
    ------
    ValueError, TypeError
        Where there is no value, or `out` has another shape or dtype, is read-only, overlaps an
        input without being it, or has strides that no layout serves.
    """
    arrays = list(inputs.values())
    x = arrays[0]
    if out is not None:
        out = _check_out(out, inputs)
    if x.size == 0:
        raise ValueError(f"x: expected at least one value, got shape {x.shape}")
    result = np.empty_like(x) if out is None else out  # in x's order of axes
    layouts = _layouts(x, axis)
    for copying in (False, True):
        for layout in layouts:
            target = view(result, axis, layout)
            views = [view(array, axis, layout) for array in arrays]
            if target is not None and (copying or all(seen is not None for seen in views)):
                seen_or_copied = [
                    _copied(array, axis, layout) if seen is None else seen
                    for array, seen in zip(arrays, views, strict=True)
                ]
                return Arranged(layout, seen_or_copied, target, result)
        if out is None:
            result = np.empty(x.shape, x.dtype)  # in C order, which a layout always serves
    raise ValueError(
        f"out: strides {result.strides} of shape {result.shape} serve no layout; expected the "
        "channels, or what follows them, to be contiguous"
    )
