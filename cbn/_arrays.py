"""What arrays are accepted, and how the kernels see them: the one place of validation, but for
what `compiled_call` takes at once.

The kernels know two layouts, both three-dimensional: "first", (N, C, L) with contiguous runs of L,
and "last", (A, B, C) with contiguous rows of C.
"""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ._dispatch import accepted_dtypes, element_of, kernels
from ._threads import thread_rule

__all__ = [
    "Arranged",
    "arrange",
    "as_array",
    "as_channel_array",
    "check_axis",
    "check_dtype",
    "check_eps",
    "check_flag",
    "check_momentum",
    "compiled_call",
    "overlap",
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
    result: np.ndarray  # `out` as it was given, or a new array


def check_dtype(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return `dtype` as one of the supported NumPy dtypes, or raise TypeError."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return _bfloat16(name)
    try:
        if dtype is None:  # NumPy's float64
            raise TypeError
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(
            f"{name}: expected {accepted_dtypes()}, got {reprlib.repr(dtype)}"
        ) from None
    if element_of(result) is None:
        shown = result.str if not result.isnative else result
        raise TypeError(f"{name}: expected {accepted_dtypes()}, got {shown}")
    return result


def _bfloat16(name: str) -> np.dtype[Any]:
    """The dtype that ml_dtypes registers, which NumPy knows by its name only after an import."""
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(f"{name}: bfloat16 needs the package ml_dtypes") from None
    result: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return result


def to_ndarray(value: Any, name: str) -> np.ndarray:
    """A NumPy view of what has ``__dlpack__``, ``__array__`` or the buffer protocol."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        if hasattr(value, "mask"):
            raise TypeError(f"{name}: a masked array is not accepted; fill or drop what is masked")
        return np.asarray(value)  # a memory map, say
    if hasattr(value, "__dlpack__"):
        if _is_bfloat16_of_torch(value):
            return np.from_dlpack(value.view(sys.modules["torch"].int16)).view(_bfloat16(name))
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: {type(value).__name__} cannot be read through __dlpack__: "
                f"{str(error).rstrip('.')}; give a NumPy array"
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


def _is_bfloat16_of_torch(value: Any) -> bool:
    """Whether a tensor on the CPU is of the type that NumPy's DLPack lacks."""
    torch: Any = sys.modules.get("torch")  # where there is a tensor, it is there
    return (
        torch is not None
        and isinstance(value, torch.Tensor)
        and value.dtype == torch.bfloat16
        and value.device.type == "cpu"
        and not value.requires_grad
    )


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
        raise TypeError(
            f"{name}: expected a floating-point array in native byte order, got {array.dtype}"
        )
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


def check_flag(value: Any, name: str) -> bool:
    """Return `value`, which must be true or false and nothing that merely counts as such."""
    if value is True or value is False or isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {reprlib.repr(value)}")


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
    if isinstance(value, float):
        return value
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected {accepted}, got {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected {accepted}, got {reprlib.repr(value)}") from None


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


def _channels_to_end(x: np.ndarray, axis: int) -> np.ndarray:
    axes = [*range(axis), *range(axis + 1, x.ndim), axis]
    return x.transpose(axes)


def view(x: np.ndarray, axis: int, layout: str) -> np.ndarray | None:
    """x in the kernels' three dimensions without a copy, or None where that cannot be."""
    shape = x.shape
    channels, before = shape[axis], math.prod(shape[:axis])
    length = x.size // (before * channels)
    flags = x.flags
    if flags.c_contiguous and flags.aligned and (layout == "first" or length == 1):  # most of them
        return x.reshape((before, channels, length) if layout == "first" else (1, -1, channels))
    if layout == "first":
        return _contiguous_inside(_reshape(x, (before, channels, length)))
    moved = _channels_to_end(x, axis)
    rows = _reshape(moved, (1, before * length, channels))
    if rows is None:
        rows = _reshape(moved, (moved.shape[0], -1, channels))
    return _contiguous_inside(rows)


def _layouts(x: np.ndarray, axis: int) -> tuple[str, str]:
    """The layouts in the order in which to try them: (N, C) and its like are rows."""
    rows = math.prod(x.shape[axis + 1 :]) == 1
    return ("last", "first") if rows else ("first", "last")


def _shares_memory_with_itself(array: np.ndarray) -> bool:
    """Whether values may overlap: in every view of an array, an axis steps over the inner ones."""
    reach = array.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)):
        if n > 1:
            if stride < reach:
                return True
            reach += stride * (n - 1)
    return False


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays share a byte, or it would be too hard to say."""
    if not np.may_share_memory(a, b):  # bounds alone
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # any int
    except np.exceptions.TooHardError:
        return True


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (a.ctypes.data == b.ctypes.data and a.strides == b.strides)


def _check_out(out: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    array = as_array(out, "out")
    x = next(iter(inputs.values()))
    flags = array.flags
    if array.shape != x.shape:
        raise ValueError(f"out: expected shape {x.shape}, got {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"out: expected {x.dtype}, like x, got {array.dtype}")
    if not flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")
    for name, other in inputs.items():
        if array is not other and overlap(array, other) and not _is_same(array, other):
            raise ValueError(
                f"out: overlaps {name}; expected {name} itself or memory apart from it"
            )
    if not flags.aligned:
        raise ValueError(f"out: expected memory aligned to its dtype, {array.dtype}")
    if not flags.c_contiguous and _shares_memory_with_itself(array):
        raise ValueError(f"out: its values share memory (strides {array.strides})")
    return array


def _copied(x: np.ndarray, axis: int, layout: str) -> np.ndarray:
    """A copy of x in the kernels' three dimensions, aligned and in C order."""
    channels = x.shape[axis]
    if layout == "last":
        return np.array(_channels_to_end(x, axis), order="C").reshape(1, -1, channels)
    return np.array(x, order="C").reshape(math.prod(x.shape[:axis]), channels, -1)


def compiled_call(
    x: np.ndarray, axis: int, num_threads: int | None, state: tuple[Any, ...] = (None,) * 4
) -> Any:
    """A kernels.BatchNormCall for an array in C order with the channels second or last, or None.

    What it returns None for, be it wrong or rare, is left to the way that checks.
    """
    if (axis != 1 and axis != x.ndim - 1) or not x.flags.c_contiguous:
        return None
    call = kernels.BatchNormCall()
    call._prepare(x.shape[axis], x.dtype, axis != 1, (2, 32), thread_rule(num_threads), state)
    return call


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
        input without being it, or neither its channels nor what follows them are contiguous.
    """
    arrays = list(inputs.values())
    x = arrays[0]
    y = None if out is None else _check_out(out, inputs)
    if x.size == 0:
        raise ValueError(f"x: expected at least one value, got shape {x.shape}")
    target_array = np.empty_like(x) if y is None else y  # in x's order of axes
    layouts = _layouts(x, axis)
    for copying in (False, True):
        for layout in layouts:
            target = view(target_array, axis, layout)
            views = [view(array, axis, layout) for array in arrays]
            if target is not None and (copying or all(seen is not None for seen in views)):
                seen_or_copied = [
                    _copied(array, axis, layout) if seen is None else seen
                    for array, seen in zip(arrays, views, strict=True)
                ]
                result = target_array if out is None else out
                return Arranged(layout, seen_or_copied, target, result)
        if y is None:
            target_array = np.empty(x.shape, x.dtype)  # in C order, which a layout always serves
    raise ValueError(
        "out: expected the channels, or what follows them, to be contiguous; got strides "
        f"{target_array.strides} for shape {target_array.shape}"
    )
