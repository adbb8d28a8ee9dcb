"""What change of the model's input would explain the drift of its first layer.

Between the input and the first batch norm there is, as a rule, nothing but a convolution and
constants. Where that is so, what the layer sees of ``scale * x + offset`` follows from what it
sees of x, of 0 and of 1, padding and all. So the scale and the offset can be found that bring the
data back to the layer's stored statistics: what is known of the inputs that it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

import cbn

__all__ = ["InputChange", "Responses", "fit"]

INVERTED = 0.1
"""A negative scale must leave less than this part of what the best positive one leaves."""

FEWEST_CHANNELS = 4
"""Two unknowns against two numbers a channel: with fewer channels any drift is explained."""

_STEPS = 200
_LARGEST_DAMPING = 1e12
_SMALLEST_GAIN = 1e-9


@dataclasses.dataclass(frozen=True)
class InputChange:
    """The change of the inputs that would bring the first layer back to its stored statistics.

    Attributes
    ----------
    input, layer : str
        Names of the model's input and of its first layer.
    mean, deviation : float
        Of the data, over all values of the input.
    scale, offset : float
        ``scale * data + offset`` fits the layer's stored statistics best.
    fitting_mean, fitting_deviation : float
        Of the data changed so.
    explained : float
        Share of the layer's drift that is gone then, 0 to 1.
    image : bool
        Whether the input has the rank of images, (N, C, H, W).
    """

    input: str
    layer: str
    mean: float
    deviation: float
    scale: float
    offset: float
    fitting_mean: float
    fitting_deviation: float
    explained: float
    image: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Responses:
    """What the first layer sees of 0, and beyond that of the data and of 1 everywhere.

    The three are fields over all samples and places. They come as statistics of each channel of
    the fields and of their sums by two, which tell how they vary together.

    Attributes
    ----------
    fields : tuple of three cbn.BatchStats
        To 0, to the data, to 1.
    sums : tuple of three cbn.BatchStats
        To 0 and the data, to 0 and 1, to the data and 1, added up place by place.
    """

    fields: tuple[cbn.BatchStats, ...]
    sums: tuple[cbn.BatchStats, ...]

    @classmethod
    def of(
        cls,
        zero: np.ndarray,
        data: np.ndarray,
        one: np.ndarray,
        *,
        num_threads: int | None = None,
    ) -> Responses:
        """Of what the layer sees of each of the three: arrays of one shape (N, C, ...)."""
        fields = (zero, data - zero, one - zero)
        sums = (fields[0] + fields[1], fields[0] + fields[2], fields[1] + fields[2])

        def stats(field: np.ndarray) -> cbn.BatchStats:
            return cbn.batch_stats(field, num_threads=num_threads)

        return cls(
            (stats(fields[0]), stats(fields[1]), stats(fields[2])),
            (stats(sums[0]), stats(sums[1]), stats(sums[2])),
        )

    def __add__(self, other: Responses) -> Responses:
        fields = tuple(one + two for one, two in zip(self.fields, other.fields, strict=True))
        sums = tuple(one + two for one, two in zip(self.sums, other.sums, strict=True))
        return Responses(fields, sums)

    def under(self, scale: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each channel, were the input ``scale * data + offset``."""
        factors = (1.0, scale, offset)
        zero, data, one = self.fields
        mean = zero.mean + scale * data.mean + offset * one.mean
        var = zero.var + scale**2 * data.var + offset**2 * one.var
        for (i, j), both in zip(((0, 1), (0, 2), (1, 2)), self.sums, strict=True):
            twice_covariance = both.var - self.fields[i].var - self.fields[j].var
            var = var + factors[i] * factors[j] * twice_covariance
        return mean, np.maximum(var, 0)


def fit(
    responses: Responses, stored_mean: np.ndarray, stored_var: np.ndarray, eps: float
) -> tuple[float, float, float]:
    """Find the scale and offset of the input that fit the stored statistics best.

    Parameters
    ----------
    responses : Responses
    stored_mean, stored_var : numpy.ndarray, shape (C,)
    eps : float
        Added to each variance.

    Returns
    -------
    scale, offset : float
        Of least squares over the shifts and, over the square root of 2, the logarithms of the
        variance ratios: for small ones that is the symmetric KL.
    explained : float
        Share of that sum which is gone; 0 where nothing is gained.
    """
    base = stored_var + eps

    def residuals(point: np.ndarray) -> np.ndarray:
        mean, var = responses.under(point[0], point[1])
        shift = (mean - stored_mean) / np.sqrt(base)
        return np.concatenate([shift, np.log((var + eps) / base) / np.sqrt(2)])

    unchanged = np.array([1.0, 0.0])
    before = _total(residuals(unchanged))
    best, least = unchanged, before
    size = float(np.exp(np.median(np.log(base / (responses.fields[1].var + eps))) / 2))
    for scale, part in ((size, 1.0), (-size, INVERTED)):
        point = np.array([scale, _best_offset(responses, scale, stored_mean, base)])
        point = _descend(residuals, point)
        left = _total(residuals(point))
        if left < part * least:
            best, least = point, left
    return float(best[0]), float(best[1]), 1 - least / before if before > 0 else 0.0


def _best_offset(
    responses: Responses, scale: float, stored_mean: np.ndarray, base: np.ndarray
) -> float:
    """Least squares over the means alone, each in stored deviations."""
    slope = responses.fields[2].mean / np.sqrt(base)
    wanted = (stored_mean - responses.under(scale, 0.0)[0]) / np.sqrt(base)
    steepness = float(slope @ slope)
    return float(slope @ wanted) / steepness if steepness > 0 else 0.0


def _descend(residuals: Callable[[np.ndarray], np.ndarray], point: np.ndarray) -> np.ndarray:
    """Levenberg and Marquardt's method in two unknowns, with differences for derivatives."""
    damping = 1e-3
    value = residuals(point)
    for _ in range(_STEPS):
        widths = 1e-6 * np.maximum(np.abs(point), np.abs(point).max())
        columns = [
            (residuals(point + step) - residuals(point - step)) / (2 * width)
            for step, width in zip(np.diag(widths), widths, strict=True)
        ]
        slopes = np.stack(columns, axis=1)
        normal = slopes.T @ slopes
        normal += damping * np.diag(np.maximum(np.diag(normal), np.finfo(float).tiny))
        try:
            step = np.linalg.solve(normal, -slopes.T @ value)
        except np.linalg.LinAlgError:  # the layer does not hear of the input
            break
        trial = residuals(point + step)
        if not _total(trial) < _total(value):
            damping *= 10
            if damping > _LARGEST_DAMPING:
                break
            continue
        gained = 1 - _total(trial) / _total(value)
        point, value, damping = point + step, trial, damping / 10
        if gained < _SMALLEST_GAIN:
            break
    return point


def _total(residuals: np.ndarray) -> float:
    return float(residuals @ residuals)
