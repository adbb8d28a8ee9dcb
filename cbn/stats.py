"""Batch statistics that merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import as_array, check_axis, single
from ._dispatch import kernel
from ._threads import check_num_threads, threads_for

__all__ = ["BatchStats", "batch_stats"]


@dataclass(frozen=True, eq=False)
class BatchStats:
    """Count, mean and sum of squared deviations of each channel, over some values.

    ``a + b`` are the statistics of both sets of values together, by the rule of Chan, Golub and
    LeVeque (1979), in float64; ``sum(list_of_stats)`` works too.

    Parameters
    ----------
    count : int
        Values of each channel.
    mean : ndarray of float64, shape (C,)
    m2 : ndarray of float64, shape (C,)
        Sum of ``(x - mean) ** 2``.
    """

    count: int
    mean: np.ndarray
    m2: np.ndarray

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

    def __add__(self, other: BatchStats) -> BatchStats:
        if not isinstance(other, BatchStats):
            return NotImplemented
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"BatchStats: cannot merge {self.mean.size} channels with {other.mean.size}"
            )
        count = self.count + other.count
        apart = other.mean - self.mean
        return BatchStats(
            count,
            self.mean + apart * (other.count / count),
            self.m2 + other.m2 + apart**2 * (self.count * other.count / count),
        )

    def __radd__(self, other: object) -> BatchStats:
        return self if other == 0 and isinstance(other, int) else NotImplemented


def batch_stats(x: Any, *, axis: int = 1, num_threads: int | None = None) -> BatchStats:
    """Mean and variance of each channel of x, in float64.

    Parameters
    ----------
    x : array of float32 or float64, at least 2-D
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
    layout, x3 = single(array, axis)
    moments = np.empty((2, array.shape[axis]))
    kernel("stats", layout, array.dtype)(x3, moments, threads_for(num_threads, array.nbytes))
    return BatchStats(array.size // array.shape[axis], moments[0], moments[1])
