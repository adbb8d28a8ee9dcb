"""The fused eval form of a batch norm: an affine map of each channel."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from ._arrays import (
    as_array,
    as_channel_array,
    check_axis,
    check_dtype,
    to_float,
    to_ndarray,
)
from ._dispatch import kernels
from ._threads import check_num_threads, thread_rule
from .functional import is_single, scale_shift

__all__ = ["ACTIVATIONS", "ScaleShift"]

#: Names of the activations, at the number that the kernels know them by.
ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "hardswish")


class ScaleShift(kernels.AffineMap):  # type: ignore[misc]  # compiled, one for each build
    """``activation((x - shift) * scale + bias + residual)`` for each channel.

    Immutable, picklable, and safe to call from many threads at once. This form, and not
    ``x * scale + bias``, keeps its digits where the mean is far above the deviation. Made by
    ``BatchNorm*.fuse()``.

    Parameters
    ----------
    shift, scale, bias : float array of shape (C,)
        Rounded to the type that the arithmetic is done in: float64 for float64, else float32.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "hardswish"}
        Applied last, before the one rounding to a 16-bit dtype. A NaN passes through all of them.
    negative_slope : float
        Of leaky_relu.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Of the arrays that it will be called on.
    axis : int
        The axis of the channels: 1, or -1 for channels last.
    num_threads : int, optional
        As in ``cbn.batch_norm``.

    A call, ``f(x, out=None, residual=None)``, takes an array of `dtype`, with at least 2 dimensions
    and C channels on `axis`, writes into `out` or a new array, and returns it; `out` may be x or
    `residual`, which are arrays like x. It raises TypeError or ValueError for what is not accepted,
    and has changed nothing then.

    Attributes
    ----------
    shift, scale, bias : read-only ndarray of float64, shape (C,)
        Values that the arithmetic's type holds exactly.
    """

    __slots__ = ("_activation", "_axis", "_dtype", "_negative_slope", "_num_threads", "_values")

    def __init__(
        self,
        shift: Any,
        scale: Any,
        bias: Any,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        dtype: Any = "float32",
        axis: int = 1,
        num_threads: int | None = None,
    ) -> None:
        if hasattr(self, "_values"):
            raise TypeError("ScaleShift is immutable")
        self._dtype = check_dtype(dtype)
        if not isinstance(axis, int) or axis not in (1, -1):
            raise ValueError(f"axis: expected 1 or -1, got {reprlib.repr(axis)}")
        if not isinstance(activation, str | None) or activation not in ACTIVATIONS:
            names = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation: expected one of {names}, got {reprlib.repr(activation)}")
        named = (("shift", shift), ("scale", scale), ("bias", bias))
        arrays = {name: to_ndarray(values, name) for name, values in named}
        channels = arrays["shift"].size
        if arrays["shift"].ndim != 1 or channels == 0:
            raise ValueError(f"shift: expected shape (C,), got {arrays['shift'].shape}")
        working = np.float32 if is_single(self._dtype) else np.float64
        rows = [as_channel_array(array, channels, name) for name, array in arrays.items()]
        self._values: np.ndarray = np.stack(
            [row.astype(working).astype(np.float64) for row in rows]
        )
        self._values.flags.writeable = False
        self._axis = axis
        self._activation = activation
        self._negative_slope = to_float(negative_slope, "negative_slope")
        if not np.isfinite(self._negative_slope):
            raise ValueError(f"negative_slope: expected a finite number, got {negative_slope}")
        self._num_threads = check_num_threads(num_threads)
        self._prepare(
            self._values,
            self._dtype,
            axis == -1,
            ACTIVATIONS.index(activation),
            self._negative_slope,
            (2, 32),
            (),
            thread_rule(self._num_threads),
        )

    @property
    def shift(self) -> np.ndarray:
        """What is subtracted first: the mean. Shape (C,)."""
        return np.asarray(self._values[0])

    @property
    def scale(self) -> np.ndarray:
        """The factor: weight / sqrt(var + eps). Shape (C,)."""
        return np.asarray(self._values[1])

    @property
    def bias(self) -> np.ndarray:
        """What is added. Shape (C,)."""
        return np.asarray(self._values[2])

    @property
    def activation(self) -> str | None:
        """The name of what is applied last, or None."""
        return self._activation

    @property
    def negative_slope(self) -> float:
        """The slope of leaky_relu below 0."""
        return self._negative_slope

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the arrays that it takes and returns."""
        return self._dtype

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return self._axis

    @property
    def num_features(self) -> int:
        """The number of channels."""
        return int(self._values.shape[1])

    # The call itself is compiled, in kernels.AffineMap: f(x, out=None, residual=None). It takes
    # contiguous arrays at once and comes here with all others.
    def _checked(self, x: Any, out: Any, residual: Any) -> np.ndarray:
        array = as_array(x)
        if array.dtype != self._dtype:
            raise TypeError(f"x: expected {self._dtype}, got {array.dtype}")
        axis = check_axis(self._axis, array.ndim)
        if array.shape[axis] != self.num_features:
            raise ValueError(
                f"x: expected {self.num_features} channels on axis {axis}, got shape {array.shape}"
            )
        if residual is not None:
            residual = as_array(residual, "residual")
            if residual.shape != array.shape:
                raise ValueError(
                    f"residual: expected shape {array.shape}, like x, got {residual.shape}"
                )
            if residual.dtype != array.dtype:
                raise TypeError(f"residual: expected {array.dtype}, like x, got {residual.dtype}")
        return scale_shift(
            array,
            self._values,
            axis,
            out,
            self._num_threads,
            residual=residual,
            activation=ACTIVATIONS.index(self._activation),
            slope=self._negative_slope,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "activation": self._activation,
            "negative_slope": self._negative_slope,
            "dtype": self._dtype,
            "axis": self._axis,
            "num_threads": self._num_threads,
        }
        return _rebuild, (*self._values, options)

    def __repr__(self) -> str:
        activation = "" if self._activation is None else f", activation={self._activation!r}"
        return (
            f"ScaleShift({self.num_features}{activation}, dtype={str(self._dtype)!r}, "
            f"axis={self._axis})"
        )


def _rebuild(shift: Any, scale: Any, bias: Any, options: dict[str, Any]) -> ScaleShift:
    return ScaleShift(shift, scale, bias, **options)
