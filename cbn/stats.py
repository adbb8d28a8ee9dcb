"""Batch statistics that merge."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ._arrays import as_array, check_axis, compiled_call, reject_channels, single
from ._dispatch import run
from ._threads import check_num_threads, threads_for

__all__ = ["BatchStats", "batch_stats"]


class BatchStats:
    """Count, mean and sum of squared deviations of each channel, over some values.

    ``a + b`` are the statistics of both sets of values together, by the rule of Chan, Golub and
    LeVeque (1979), in float64 with the mean held in two doubles; ``sum(list_of_stats)`` works too.

    Parameters
    ----------
    count : int
        Values of each channel.
    mean : array of shape (C,)
    m2 : array of shape (C,)
        Sum of ``(x - mean) ** 2``.
    mean_low : array of shape (C,), optional
        What `mean` lost when it was rounded to float64; 0 by default.

    Arrays are copied; the attributes are read-only arrays of float64.

    Raises
    ------
    TypeError, ValueError
        For a count below 1 or that is no int, what is no array of numbers, other shapes, or a
        negative m2.
    """

    # No dataclass: to load that module and to make one was a third of `import cbn`.
    __slots__ = ("__weakref__", "_count", "_m2", "_mean", "_mean_low")
    __match_args__ = ("count", "mean", "m2", "mean_low")
    _count: int
    _mean: np.ndarray
    _m2: np.ndarray
    _mean_low: np.ndarray | None

    def __init__(self, count: int, mean: Any, m2: Any, mean_low: Any = None) -> None:
        try:
            values = operator.index(count)
        except TypeError:
            raise TypeError(f"count: expected an int >= 1, got {count!r}") from None
        if values < 1:
            raise ValueError(f"count: expected an int >= 1, got {values}")
        kept = _kept(mean, "mean")
        if kept.ndim != 1:
            raise ValueError(f"mean: expected shape (C,), got {kept.shape}")
        m2 = _kept(m2, "m2", kept.shape)
        reject_channels(m2 < 0, m2, "m2", "values >= 0")
        self._count, self._mean, self._m2 = values, kept, m2
        self._mean_low = None if mean_low is None else _kept(mean_low, "mean_low", kept.shape)

    @property
    def count(self) -> int:
        """Values of each channel."""
        return self._count

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel, rounded to float64. Shape (C,)."""
        return self._mean

    @property
    def m2(self) -> np.ndarray:
        """Sum of ``(x - mean) ** 2`` of each channel. Shape (C,)."""
        return self._m2

    @property
    def mean_low(self) -> np.ndarray | None:
        """What `mean` lost when it was rounded, or None. Shape (C,)."""
        return self._mean_low

    def __reduce__(self) -> tuple[Any, ...]:
        more = getattr(self, "__dict__", None)  # of a subclass
        return type(self), (self.count, self.mean, self.m2, self.mean_low), more or None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(count={self.count!r}, mean={self.mean!r}, m2={self.m2!r}, "
            f"mean_low={self.mean_low!r})"
        )

    @property
    def var(self) -> np.ndarray:
        """Population variance, ``m2 / count`` (ddof=0): what normalizes a batch. Shape (C,)."""
        return self.m2 / self.count

    @property
    def unbiased_var(self) -> np.ndarray:
        """Sample variance, ``m2 / (count - 1)`` (ddof=1): what goes into torch's running_var.

        Raises
        ------
        ValueError
            For a single value, whose sample variance does not exist.
        """
        if self.count < 2:
            raise ValueError(
                f"unbiased_var: expected more than 1 value per channel, got {self.count}"
            )
        return self.m2 / (self.count - 1)

    def to_array(self) -> np.ndarray:
        """One float64 array of shape (1 + 3 C,), to send to another process: count, mean, mean_low
        and m2. The sum of such arrays means nothing; add what `from_array` makes of them.
        """
        return np.concatenate([[float(self.count)], self.mean, self._low(), self.m2])

    @classmethod
    def from_array(cls, array: Any) -> BatchStats:
        """What `to_array` made.

        Raises
        ------
        ValueError
            For an array of another shape, or a count that is no whole number above 0.
        """
        values = np.asarray(array, np.float64)
        channels, rest = divmod(values.size - 1, 3)
        if values.ndim != 1 or channels < 1 or rest:
            raise ValueError(f"array: expected shape (1 + 3 C,), got {values.shape}")
        if not (values[0] >= 1 and values[0].is_integer()):
            raise ValueError(f"array: expected a whole number >= 1 first, got {values[0]}")
        mean, low, m2 = values[1:].reshape(3, channels)
        return cls(int(values[0]), mean, m2, low)

    def _low(self) -> np.ndarray:
        return np.zeros_like(self.mean) if self.mean_low is None else self.mean_low

    def __add__(self, other: BatchStats) -> BatchStats:
        if not isinstance(other, BatchStats):
            return NotImplemented
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"BatchStats: cannot merge {self.mean.size} channels with {other.mean.size}"
            )
        count = self.count + other.count
        with np.errstate(invalid="ignore", over="ignore"):
            apart = (other.mean - self.mean) + (other._low() - self._low())
            low = self._low() + apart * (other.count / count)
            mean = self.mean + low
            m2 = self.m2 + other.m2 + apart**2 * (self.count * other.count / count)
            low = low - (mean - self.mean)  # Dekker's fast two-sum
            # An infinite mean stays one, as it does within an array.
            finite = np.isfinite(apart)
            mean = np.where(finite, mean, self.mean + other.mean)
        return BatchStats(count, mean, np.where(finite, m2, np.nan), np.where(finite, low, 0.0))

    def __radd__(self, other: object) -> BatchStats:
        return self if other == 0 and isinstance(other, int) else NotImplemented


def _kept(values: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A copy that is read-only."""
    try:
        result = np.asarray(values).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: expected an array of numbers, got {type(values).__name__}"
        ) from None
    if shape is not None and result.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, like mean, got {result.shape}")
    result.flags.writeable = False
    return result


def batch_stats(x: Any, *, axis: int = 1, num_threads: int | None = None) -> BatchStats:
    """Mean and variance of each channel of x, in float64.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, at least 2-D
        Taken as it is where what follows the channel axis, or the channel axis itself, is
        contiguous; copied otherwise.
    axis : int
        The axis of the channels; the statistics run over all others.
    num_threads : int, optional
        None: what the machine allows, one for small arrays. The result has the same bits whatever
        their number.

    Returns
    -------
    BatchStats
        Of ``x.size // C`` values a channel.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, fewer than 2 dimensions, no value at all, or an axis that x lacks.
    """
    array = as_array(x)
    axis = check_axis(axis, array.ndim)
    num_threads = check_num_threads(num_threads)
    call = compiled_call(array, axis, num_threads)
    if call is not None and (moments := call.moments(array)) is not None:
        return stats_of(moments, array)
    layout, x3 = single(array, axis)
    moments = np.empty((3, array.shape[axis]))
    run("stats", layout, [x3], [moments], threads_for(num_threads, array.nbytes))
    return stats_of(moments, array)


def stats_of(moments: np.ndarray, x: np.ndarray) -> BatchStats:
    """What a kernel wrote, (3, C), over the values of x; neither checked nor copied."""
    kept = moments.view()
    kept.flags.writeable = False
    mean, low, m2 = kept[0], kept[1], kept[2]  # a third of the time that unpacking takes
    stats = object.__new__(BatchStats)
    stats._count, stats._mean, stats._m2, stats._mean_low = x.size // mean.size, mean, m2, low
    return stats
