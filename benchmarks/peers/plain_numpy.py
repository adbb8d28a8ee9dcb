"""NumPy, as one writes it by hand."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.cases import EPS, MOMENTUM, buffer_like
from benchmarks.measure import Statement
from benchmarks.peers.base import Contender


class NumPy(Contender):
    name = "numpy"
    family = "numpy"
    legend = (
        "x * a + b in place of a buffer in use, in call a fresh one; mean and var of x in train; "
        "in backward the sums and dx by their formulas; "
        "16-bit types by way of a float32 buffer; one thread"
    )
    modes = frozenset({"train", "eval", "backward", "call"})

    def prepare(self) -> Statement:
        case, data = self.case, self.data
        x = data.x
        self._out = buffer_like(x)
        self._axes = tuple(axis for axis in range(x.ndim) if axis != case.channel_axis)
        self._column = [1] * x.ndim
        self._column[case.channel_axis] = case.channels
        self._narrow = case.element.itemsize == 2
        self._buffer = np.zeros(x.shape, np.float32) if self._narrow else self._out
        if case.mode == "backward":
            return Statement("f()", f=self._backward)
        if case.training:
            self._running = data.running_mean.copy(), data.running_var.copy()
            return Statement("f()", f=self._train)
        a, b = self._scale_shift(data.running_mean, data.running_var)
        if case.mode == "call":
            call = Statement("x * a + b", x=x, a=a, b=b)
            self._out[...] = call()
            return call
        return Statement("f(x, a, b)", f=self._apply, x=x, a=a, b=b)

    def output(self) -> np.ndarray:
        return self._out

    def _wide(self, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32) if self._narrow else array

    def _train(self) -> None:
        x = self._wide(self.data.x)
        mean, var = x.mean(self._axes), x.var(self._axes)
        count = math.prod(self.case.shape) // self.case.channels
        for running, new in zip(self._running, (mean, var * (count / (count - 1))), strict=True):
            running += MOMENTUM * (new - running)
        self._apply(x, *self._scale_shift(mean, var))

    def _scale_shift(self, mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a = self.data.weight / np.sqrt(var + EPS)
        return self._along(a), self._along(self.data.bias - mean * a)

    def _along(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self.case.parameter_dtype).reshape(self._column)

    def _apply(self, x: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        np.multiply(x, a, out=self._buffer)
        np.add(self._buffer, b, out=self._buffer)
        self._round()

    def _backward(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gradient = self.data.gradient
        assert gradient is not None
        dy = self._wide(gradient.dy)
        xhat = (self._wide(self.data.x) - self._along(gradient.mean)) * self._along(gradient.rstd)
        dweight, dbias = (dy * xhat).sum(self._axes), dy.sum(self._axes)
        count = math.prod(self.case.shape) // self.case.channels
        np.multiply(xhat, self._along(dweight / count), out=xhat)
        np.subtract(dy, xhat, out=self._buffer)
        np.subtract(self._buffer, self._along(dbias / count), out=self._buffer)
        scale = self._along(self.data.weight * gradient.rstd)
        np.multiply(self._buffer, scale, out=self._buffer)
        self._round()
        return self._out, dweight, dbias

    def _round(self) -> None:
        if self._narrow:
            np.copyto(self._out, self._buffer, casting="unsafe")
