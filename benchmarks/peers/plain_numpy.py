"""NumPy, as one writes it by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from benchmarks.cases import EPS, MOMENTUM
from benchmarks.peers.base import Contender


class NumPy(Contender):
    name = "numpy"
    legend = "x * a + b in place of a buffer in use; mean and var of x in train; one thread"

    def prepare(self) -> Callable[[], object]:
        case, data = self.case, self.data
        x = data.x
        self._out = np.zeros_like(x)
        self._axes = tuple(axis for axis in range(x.ndim) if axis != case.channel_axis)
        self._column = [1] * x.ndim
        self._column[case.channel_axis] = case.channels
        if case.training:
            self._running = data.running_mean.copy(), data.running_var.copy()
            return self._train
        a, b = self._scale_shift(data.running_mean, data.running_var)
        return functools.partial(self._apply, a, b)

    def output(self) -> np.ndarray:
        return self._out

    def _train(self) -> None:
        x = self.data.x
        mean, var = x.mean(self._axes), x.var(self._axes)
        count = math.prod(self.case.shape) // self.case.channels
        for running, new in zip(self._running, (mean, var * (count / (count - 1))), strict=True):
            running += MOMENTUM * (new - running)
        self._apply(*self._scale_shift(mean, var))

    def _scale_shift(self, mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a = self.data.weight / np.sqrt(var + EPS)
        b = self.data.bias - mean * a
        return (
            a.astype(self.case.dtype).reshape(self._column),
            b.astype(self.case.dtype).reshape(self._column),
        )

    def _apply(self, a: np.ndarray, b: np.ndarray) -> None:
        np.multiply(self.data.x, a, out=self._out)
        np.add(self._out, b, out=self._out)
