"""The fused eval form of a batch norm: an affine map of each channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import as_array, as_channel_array, check_axis, check_dtype
from ._threads import check_num_threads
from .functional import scale_shift

__all__ = ["ScaleShift"]


class ScaleShift:
    """``(x - shift) * scale + bias`` for each channel: immutable, and safe to call from any thread.

    This form, and not ``x * scale + bias``, keeps its digits where the mean is far above the
    deviation. Made by ``BatchNorm*.fuse()``.

    Parameters
    ----------
    shift, scale, bias : float array of shape (C,)
        Rounded to `dtype`.
    dtype : {"float32", "float64"}
        Of the arrays that it will be called on.
    axis : int
        The axis of the channels: 1, or -1 for channels last.
    num_threads : int, optional
        As in ``cbn.batch_norm``.

    Attributes
    ----------
    shift, scale, bias : read-only ndarray of float64, shape (C,)
        Values that `dtype` holds exactly.
    """

    __slots__ = ("_axis", "_coefficients", "_dtype", "_num_threads")

    def __init__(
        self,
        shift: Any,
        scale: Any,
        bias: Any,
        *,
        dtype: Any = "float32",
        axis: int = 1,
        num_threads: int | None = None,
    ) -> None:
        self._dtype = check_dtype(dtype)
        first = np.asarray(shift)
        if first.ndim != 1:
            raise ValueError(f"shift: expected shape (C,), got {first.shape}")
        rows = [
            as_channel_array(values, first.size, name)
            for name, values in (("shift", first), ("scale", scale), ("bias", bias))
        ]
        self._coefficients: np.ndarray = np.stack(rows).astype(self._dtype).astype(np.float64)
        self._coefficients.flags.writeable = False
        self._axis = axis
        self._num_threads = check_num_threads(num_threads)

    @property
    def shift(self) -> np.ndarray:
        """What is subtracted first: the mean. Shape (C,)."""
        return np.asarray(self._coefficients[0])

    @property
    def scale(self) -> np.ndarray:
        """The factor: weight / sqrt(var + eps). Shape (C,)."""
        return np.asarray(self._coefficients[1])

    @property
    def bias(self) -> np.ndarray:
        """What is added last. Shape (C,)."""
        return np.asarray(self._coefficients[2])

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
        return int(self._coefficients.shape[1])

    def __call__(self, x: Any, out: Any = None) -> np.ndarray:
        """Apply the map to x, of shape (N, C, ...) or (N, ..., C).

        Parameters
        ----------
        x : array of `dtype`
        out : array like x, optional
            May be x itself; honoured without a copy or refused.

        Raises
        ------
        TypeError, ValueError
            For another dtype, another number of channels, fewer than 2 dimensions, no value at
            all, or an `out` that does not fit.
        """
        array = as_array(x)
        if array.dtype != self._dtype:
            raise TypeError(f"x: expected {self._dtype}, got {array.dtype}")
        axis = check_axis(self._axis, array.ndim)
        if array.shape[axis] != self.num_features:
            raise ValueError(
                f"x: expected {self.num_features} channels on axis {axis}, got shape {array.shape}"
            )
        return scale_shift(array, self._coefficients, axis, out, self._num_threads)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (*self._coefficients, self._dtype.str, self._axis, self._num_threads)

    def __repr__(self) -> str:
        return f"ScaleShift({self.num_features}, dtype={str(self._dtype)!r}, axis={self._axis})"


def _rebuild(
    shift: Any, scale: Any, bias: Any, dtype: str, axis: int, num_threads: int | None
) -> ScaleShift:
    return ScaleShift(shift, scale, bias, dtype=dtype, axis=axis, num_threads=num_threads)
