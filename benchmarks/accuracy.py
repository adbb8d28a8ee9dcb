"""The error of an output against a wider type, in units in the last place of its largest term."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import EPS, Case, Data
from benchmarks.channels import by_channel, moments, parts


class Reference:
    """The truth of a case in float64, or for float64 arrays in long double, where it is wider.

    Forward: ``y = (x - mean) * rstd * weight + bias``, its terms those on both sides of the last
    sign. Mean and (population) variance are those of x in training mode, else the running ones.

    Backward: ``dx = (dy - mean(dy) - xhat * mean(dy * xhat)) * weight * rstd``, of three terms,
    with ``xhat = (x - mean) * rstd`` from the mean and rstd that a contender is given, or from
    those of x for one that goes by its own.
    """

    def __init__(self, case: Case, data: Data) -> None:
        self._axis = case.channel_axis
        self._wide: type[np.floating] = np.longdouble if case.dtype == "float64" else np.float64
        self._x = by_channel(data.x, self._axis)
        self._dy = None
        if case.training or data.gradient is not None:
            self._mean, var = moments(self._x, self._wide)
        else:
            self._mean = data.running_mean.astype(self._wide)
            var = data.running_var.astype(self._wide)
        self._rstd = 1 / np.sqrt(var + EPS)
        self._given = self._mean, self._rstd
        self._weight = data.weight.astype(self._wide)
        self._bias = data.bias.astype(self._wide)
        if data.gradient is not None:
            self._dy = by_channel(data.gradient.dy, self._axis)
            given = data.gradient.mean, data.gradient.rstd
            self._given = given[0].astype(self._wide), given[1].astype(self._wide)

    def max_ulp(self, result: np.ndarray, own_statistics: bool = False) -> float:
        """Return the largest error of y, or dx, in ULP of its largest term."""
        statistics = (self._mean, self._rstd) if own_statistics else self._given
        result = by_channel(result, self._axis)
        worst = 0.0
        for part in parts(self._x.shape[1]):
            terms = self._terms(part, *statistics)
            error = np.abs(result[:, part].astype(self._wide) - sum(terms))
            largest = np.maximum.reduce(np.broadcast_arrays(*map(np.abs, terms)))
            ulp = np.spacing(largest.astype(result.dtype)).astype(self._wide)
            worst = max(worst, float((error / ulp).max()))
        return worst

    def _terms(self, part: slice, mean: np.ndarray, rstd: np.ndarray) -> list[np.ndarray]:
        column = (part, np.newaxis)
        scale = (self._weight * rstd)[column]
        centred = self._x[:, part].astype(self._wide) - mean[column]
        if self._dy is None:
            return [centred * scale, self._bias[column]]
        xhat = centred * rstd[column]
        dy = self._dy[:, part].astype(self._wide)
        mean_dy = dy.mean(axis=(0, 2), keepdims=True)
        mean_product = (dy * xhat).mean(axis=(0, 2), keepdims=True)
        return [dy * scale, -mean_dy * scale, -xhat * mean_product * scale]
