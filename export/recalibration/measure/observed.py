"""What is seen of a batch norm's input: moments that merge, and how far they can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

import cbn

__all__ = ["Observed", "Statistics"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Spread:
    """Moments over samples, in which a sample of n values weighs n².

    Of each sample's mean m, and of q = its variance + (m - center)²: what the standard errors are
    made of. `center` is the weighted mean of m; arrays of shape (C,).
    """

    weight: float
    center: np.ndarray
    square: np.ndarray  # weighted mean of q
    mean_mean: np.ndarray  # weighted sums of products of deviations
    mean_square: np.ndarray
    square_square: np.ndarray

    def about(self, center: np.ndarray) -> _Spread:
        """The same samples, with q about another center (which `center` then is)."""
        apart = self.center - center
        return _Spread(
            self.weight,
            center,
            self.square + apart**2,
            self.mean_mean,
            self.mean_square + 2 * apart * self.mean_mean,
            self.square_square + 4 * apart * self.mean_square + 4 * apart**2 * self.mean_mean,
        )

    def __add__(self, other: _Spread) -> _Spread:
        weight = self.weight + other.weight
        apart = other.center - self.center
        center = self.center + apart * (other.weight / weight)
        one, two = self.about(center), other.about(center)
        between = self.weight * (other.weight / weight)
        squares = two.square - one.square
        return _Spread(
            weight,
            center,
            one.square + squares * (other.weight / weight),
            one.mean_mean + two.mean_mean + between * apart**2,
            one.mean_square + two.mean_square + between * apart * squares,
            one.square_square + two.square_square + between * squares**2,
        )

    def to_array(self) -> np.ndarray:
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return np.concatenate([np.atleast_1d(field) for field in fields])

    @classmethod
    def from_array(cls, array: np.ndarray) -> _Spread:
        return cls(float(array[0]), *array[1:].reshape(5, -1).copy())

    @classmethod
    def of(cls, means: np.ndarray, variances: np.ndarray, count: int) -> _Spread:
        """Of samples of `count` values each; arrays of shape (N, C)."""
        weight = float(count) ** 2
        center = means.mean(axis=0)
        apart = means - center
        q = variances + apart**2
        square = q.mean(axis=0)
        rest = q - square
        return cls(
            weight * len(means),
            center,
            square,
            weight * (apart**2).sum(axis=0),
            weight * (apart * rest).sum(axis=0),
            weight * (rest**2).sum(axis=0),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """The values that reached one batch norm, channel by channel.

    ``a + b`` is what was seen of both, exactly, in float64; merge in the order of the batches to
    get the same bits again.

    Attributes
    ----------
    values : cbn.BatchStats
        Of all values of each channel: count, mean and population variance (ddof=0).
    samples : int
        Number of samples: the rows of a batch. Where the input has k rows for each sample of the
        model's input, as after a reshape of (N, k, ...), those k are one sample.
    halves : tuple of cbn.BatchStats or None
        Of the samples of even and of odd index, counted over all data; None where there is none.
    spread : object
        Moments over samples, which `mean_error` and `var_error` come from.
    """

    values: cbn.BatchStats
    samples: int
    halves: tuple[cbn.BatchStats | None, cbn.BatchStats | None]
    spread: _Spread = dataclasses.field(repr=False)

    @classmethod
    def of_samples(
        cls, means: np.ndarray, squares: np.ndarray, count: int, first_sample: int = 0
    ) -> Observed:
        """What is seen of samples that have `count` values each in every channel.

        Parameters
        ----------
        means : ndarray of float64, shape (N, C)
            Mean of each sample.
        squares : ndarray of float64, shape (N, C)
            Sum of squared deviations from it.
        count : int
            Values of one sample in one channel.
        first_sample : int, default: 0
            Index of the first of these samples in the whole data: parts the halves.

        Raises
        ------
        ValueError
            When there is no sample or no value, or the shapes are not one (N, C).
        """
        if means.ndim != 2 or means.shape != squares.shape or not len(means) or count < 1:
            raise ValueError(
                f"means, squares: expected one shape (N, C) with N >= 1 and count >= 1, got "
                f"{means.shape}, {squares.shape} and {count}"
            )
        even = first_sample % 2
        return cls(
            _merged(means, squares, count),
            len(means),
            (
                _half(means[even::2], squares[even::2], count),
                _half(means[1 - even :: 2], squares[1 - even :: 2], count),
            ),
            _Spread.of(means, squares / count, count),
        )

    @property
    def mean_error(self) -> np.ndarray:
        """Standard error of the mean, from the spread of the samples' means. Shape (C,).

        The samples are taken as independent, the values within one are not (cluster-robust, with
        the factor N / (N - 1); Cameron and Miller, "A Practitioner's Guide to Cluster-Robust
        Inference", 2015). NaN with fewer than 2 samples.
        """
        about = self.spread.about(self.values.mean)
        apart = self.spread.center - self.values.mean
        return self._error(about.mean_mean + about.weight * apart**2)

    @property
    def var_error(self) -> np.ndarray:
        """Standard error of the population variance, by the delta method over samples. Shape (C,).

        A sample's influence is its mean squared deviation from the mean of all values, less the
        variance. NaN with fewer than 2 samples.
        """
        about = self.spread.about(self.values.mean)
        apart = about.square - self.values.var
        return self._error(about.square_square + about.weight * apart**2)

    def _error(self, squares: np.ndarray) -> np.ndarray:
        if self.samples < 2:
            return np.full(squares.shape, np.nan)
        factor = self.samples / (self.samples - 1)
        return np.asarray(np.sqrt(np.maximum(squares, 0) * factor) / self.values.count)

    @property
    def effective_samples(self) -> np.ndarray:
        """How many independent values give a mean this sure: var / mean_error². Shape (C,).

        More than there are where the samples' means are nearer to each other than those of
        independent values: by chance, of few samples, or by nature, as of images of one brightness.
        Infinite where all samples have one mean, NaN where the channel is constant or `mean_error`
        is.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.values.var / self.mean_error**2)

    def __add__(self, other: Observed) -> Observed:
        if not isinstance(other, Observed):
            return NotImplemented
        even, odd = (_both(a, b) for a, b in zip(self.halves, other.halves, strict=True))
        return Observed(
            self.values + other.values,
            self.samples + other.samples,
            (even, odd),
            self.spread + other.spread,
        )

    def __radd__(self, other: object) -> Observed:
        return self if other == 0 and isinstance(other, int) else NotImplemented

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Float64 arrays of some multiple of C numbers, for files and for the wire."""
        halves = (_NONE if half is None else half.to_array() for half in self.halves)
        even, odd = halves
        return {
            "values": self.values.to_array(),
            "samples": np.array([self.samples], np.float64),
            "even": even,
            "odd": odd,
            "spread": self.spread.to_array(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Observed:
        """What `to_arrays` made, to the same bits.

        Raises
        ------
        ValueError
            When an array is missing or does not fit the others.
        """
        missing = {"values", "samples", "even", "odd", "spread"} - set(arrays)
        if missing:
            raise ValueError(f"arrays: {sorted(missing)[0]!r} is missing, got {sorted(arrays)}")
        values = cbn.BatchStats.from_array(arrays["values"])
        spread = np.asarray(arrays["spread"], np.float64)
        if spread.shape != (1 + 5 * values.mean.size,):
            raise ValueError(
                f"spread: expected shape ({1 + 5 * values.mean.size},), got {spread.shape}"
            )
        even, odd = (
            cbn.BatchStats.from_array(arrays[name]) if np.size(arrays[name]) else None
            for name in ("even", "odd")
        )
        samples = int(np.asarray(arrays["samples"]).ravel()[0])
        return cls(values, samples, (even, odd), _Spread.from_array(spread))


Statistics = Mapping[str, Observed]
"""What was seen, by the name of the target: the first of the nodes that share parameters."""

_NONE = np.zeros(0)


def _both(one: cbn.BatchStats | None, two: cbn.BatchStats | None) -> cbn.BatchStats | None:
    if one is None or two is None:
        return two if one is None else one
    return one + two


def _half(means: np.ndarray, squares: np.ndarray, count: int) -> cbn.BatchStats | None:
    return _merged(means, squares, count) if len(means) else None


def _merged(means: np.ndarray, squares: np.ndarray, count: int) -> cbn.BatchStats:
    """All values of samples of `count` values each."""
    # From the first sample on: exact where all samples are alike, however large they are.
    rest = means - means[0]
    shift = rest.mean(axis=0)
    mean = means[0] + shift
    low = shift - (mean - means[0])
    m2 = squares.sum(axis=0) + count * ((rest - shift) ** 2).sum(axis=0)
    return cbn.BatchStats(count * len(means), mean, m2, low)
