"""Moments of single samples: what a batch's statistics are merged from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

import cbn

from ...data import DataError
from .observed import Observed
from .targets import Target

__all__ = ["SampleMoments", "measure", "observe", "samples_in"]


class SampleMoments(NamedTuple):
    """Mean and sum of squared deviations of each sample in each channel.

    Attributes
    ----------
    means, squares : ndarray of float64, shape (N, C)
    length : int
        Values of one sample in one channel.
    """

    means: np.ndarray
    squares: np.ndarray
    length: int

    def grouped(self, samples: int) -> SampleMoments:
        """Take each k consecutive rows for one sample, where there are k times `samples` rows.

        Rows in another number are samples as they are.
        """
        rows = len(self.means)
        if samples < 1 or rows == samples or rows % samples:
            return self
        means = self.means.reshape(samples, rows // samples, -1)
        squares = self.squares.reshape(means.shape)
        whole = means.mean(axis=1)
        between = ((means - whole[:, None]) ** 2).sum(axis=1)
        merged = squares.sum(axis=1) + self.length * between
        return SampleMoments(whole, merged, self.length * means.shape[1])

    def joined(self, other: SampleMoments) -> SampleMoments:
        """The same samples with the values of both (Chan, Golub and LeVeque, 1979)."""
        length = self.length + other.length
        apart = other.means - self.means
        return SampleMoments(
            self.means + apart * (other.length / length),
            self.squares + other.squares + apart**2 * (self.length * other.length / length),
            length,
        )


def samples_in(feeds: Mapping[str, np.ndarray]) -> int:
    """Number of samples in a batch: the longest first axis of its inputs."""
    return max((array.shape[0] for array in feeds.values() if array.ndim), default=1)


def measure(x: np.ndarray, *, num_threads: int | None = None) -> SampleMoments:
    """Moments of each row of an array (N, C) or (N, C, ...), by cbn's kernels, in float64."""
    rows, channels = x.shape[:2]
    count = x.size // (rows * channels)
    if count == 1:
        means = x.reshape(rows, channels).astype(np.float64)
        return SampleMoments(means, np.zeros_like(means), 1)
    stats = cbn.batch_stats(x.reshape(1, rows * channels, count), num_threads=num_threads)
    shape = (rows, channels)
    return SampleMoments(stats.mean.reshape(shape), stats.m2.reshape(shape), count)


def observe(
    target: Target, seen: Sequence[SampleMoments], samples: int, first_sample: int
) -> Observed:
    """Make what is seen of a target in one batch from what each of its members saw.

    Parameters
    ----------
    target : Target
    seen : sequence of SampleMoments
        One for each member, row by row of its input.
    samples : int
        Number of samples in the batch.
    first_sample : int
        Index of the first of them in the whole data.

    Raises
    ------
    DataError
        When there is no row, or NaN or infinity among the values.
    """
    where = f"the batch of samples {first_sample} to {first_sample + samples - 1}"
    for name, moments in zip(target.members, seen, strict=True):
        if not moments.means.size:
            raise DataError(f"{where}: nothing reaches BatchNormalization {name!r}")
        # A sum of squares is infinite or NaN where any of its terms is.
        bad = ~(np.isfinite(moments.means).all(axis=0) & np.isfinite(moments.squares).all(axis=0))
        if bad.any():
            raise DataError(
                f"{where}: NaN, infinity or values too large for their type reach "
                f"BatchNormalization {name!r}, in {int(bad.sum())} of its {bad.size} channels"
            )
    grouped = [moments.grouped(samples) for moments in seen]
    first, *others = grouped
    if any(len(moments.means) != len(first.means) for moments in others):
        parts = [Observed.of_samples(*moments, first_sample) for moments in grouped]
        return sum(parts[1:], parts[0])
    for moments in others:
        first = first.joined(moments)
    return Observed.of_samples(*first, first_sample)
