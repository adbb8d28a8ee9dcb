"""The error of an output against a wider type, in units in the last place of its largest term."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import EPS, Case, Data

CHANNELS_AT_ONCE = 8  # bounds the wide temporaries on large arrays


class Reference:
    """The truth of a case: y = (x - mean) * rstd * weight + bias in float64.

    For float64 arrays it is computed in long double, which is wider on most machines. In training
    mode mean and (biased) variance are those of x, else the running statistics.
    """

    def __init__(self, case: Case, data: Data) -> None:
        self._axis = case.channel_axis
        self._wide: type[np.floating] = np.longdouble if case.dtype == "float64" else np.float64
        self._x = self._by_channel(data.x)
        self._weight = data.weight.astype(self._wide)
        self._bias = data.bias.astype(self._wide)
        self._mean = data.running_mean.astype(self._wide)
        var = data.running_var.astype(self._wide)
        if case.training:
            for part in self._parts():
                x = self._x[:, part].astype(self._wide)
                self._mean[part] = x.mean(axis=(0, 2))
                var[part] = np.square(x - self._mean[part, np.newaxis]).mean(axis=(0, 2))
        self._scale = self._weight / np.sqrt(var + EPS)

    def max_ulp(self, y: np.ndarray) -> float:
        """Return the largest |y - truth| in ULP of max(|(x - mean) * scale|, |bias|)."""
        y = self._by_channel(y)
        worst = 0.0
        for part in self._parts():
            column = (part, np.newaxis)
            term = (self._x[:, part].astype(self._wide) - self._mean[column]) * self._scale[column]
            error = np.abs(y[:, part] - (term + self._bias[column]))
            largest = np.maximum(np.abs(term), np.abs(self._bias[column]))
            ulp = np.spacing(largest.astype(y.dtype)).astype(self._wide)
            worst = max(worst, float((error / ulp).max()))
        return worst

    def _parts(self) -> list[slice]:
        channels = self._x.shape[1]
        return [slice(i, i + CHANNELS_AT_ONCE) for i in range(0, channels, CHANNELS_AT_ONCE)]

    def _by_channel(self, array: np.ndarray) -> np.ndarray:
        """View the array as (N, C, L), in any layout, without a copy."""
        if self._axis == 1:
            return array.reshape(*array.shape[:2], -1)
        return np.moveaxis(array.reshape(array.shape[0], -1, array.shape[-1]), -1, 1)
