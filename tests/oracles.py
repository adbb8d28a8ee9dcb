"""Slow, plain answers to what cbn computes fast, the measure of their difference, and shapes.

Statistics are sums that `math.fsum` rounds once; the normalization of them is done in long double.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# A busy machine is no failure, and a run is the same each time.
settings.register_profile("cbn", deadline=None, derandomize=True)
settings.load_profile("cbn")

#: The contract: error of the output, in units in the last place of the largest term.
MAX_ULP = 3.0

#: The contract: relative error of a batch variance.
VARIANCE_RTOL = 1e-12


class Statistics(NamedTuple):
    """Of each channel: mean and population variance (long double), and how many values."""

    mean: np.ndarray
    var: np.ndarray
    count: int


def by_channel(x: np.ndarray, axis: int = 1) -> np.ndarray:
    """The values of each channel as the row of a (C, n) array."""
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def along(values: Any, ndim: int, axis: int) -> np.ndarray:
    """One value a channel, shaped to broadcast against an array of `ndim` dimensions."""
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(values).reshape(shape)


def statistics(x: np.ndarray, axis: int = 1) -> Statistics:
    """Mean and population variance of each channel; two passes, and what the first rounded."""
    means, variances = [], []
    rows = by_channel(x, axis).astype(np.float64)
    for row in rows:
        mean = math.fsum(row) / row.size
        apart = row - mean
        left = math.fsum(apart) / row.size
        means.append(np.longdouble(mean) + np.longdouble(left))
        variances.append(np.longdouble(math.fsum(apart * apart) / row.size) - left * left)
    return Statistics(np.array(means), np.maximum(np.array(variances), 0), rows.shape[1])


def batch_norm(
    x: np.ndarray,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    axis: int = 1,
) -> np.ndarray:
    """(x - mean) / sqrt(var + eps) * weight + bias, in long double."""
    wide = np.longdouble
    scale = (1 if weight is None else weight) / np.sqrt(np.asarray(var, wide) + wide(eps))
    shift = np.zeros_like(scale) if bias is None else np.asarray(bias, wide)
    centred = x.astype(wide) - along(np.asarray(mean, wide), x.ndim, axis)
    return centred * along(scale, x.ndim, axis) + along(shift, x.ndim, axis)


def largest_term(
    x: np.ndarray,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    axis: int = 1,
) -> np.ndarray:
    """The largest of the product, b and the result of (x - m) * a + b, for each value of x.

    m is the mean rounded to the type that works on x, and b the bias with that rounding carried
    into it.
    """
    wide = np.longdouble
    expected = batch_norm(x, mean, var, weight, bias, eps, axis)
    rounded = np.asarray(mean, wide).astype(working(x.dtype)).astype(wide)
    a = (1 if weight is None else weight) / np.sqrt(np.asarray(var, wide) + wide(eps))
    b = (0 if bias is None else np.asarray(bias, wide)) + (rounded - mean) * a
    product = (x.astype(wide) - along(rounded, x.ndim, axis)) * along(a, x.ndim, axis)
    return largest(product, along(b, x.ndim, axis), expected)


def largest(*terms: Any) -> np.ndarray:
    """The largest magnitude of terms that broadcast against each other."""
    return functools.reduce(np.maximum, map(np.abs, terms))


def working(dtype: Any) -> np.dtype[Any]:
    """The type that the arithmetic on arrays of `dtype` is done in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def spacing(values: np.ndarray, dtype: Any) -> np.ndarray:
    """A unit in the last place of `dtype`, at each value; of the smallest where it is zero."""
    info = finfo(dtype)
    size = np.maximum(np.abs(values.astype(np.longdouble)), np.longdouble(info.smallest_normal))
    return np.ldexp(np.longdouble(info.eps), np.frexp(size)[1] - 1)


def finfo(dtype: Any) -> Any:
    """``numpy.finfo``, for bfloat16 too."""
    return ml_dtypes.finfo(dtype)


def ulp_error(
    y: np.ndarray,
    x: np.ndarray,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    axis: int = 1,
) -> float:
    """The largest error of y, in ULP (of the working type) of the largest term.

    For 16-bit arrays, of what is left after half a unit of theirs: they are rounded once more.
    """
    expected = batch_norm(x, mean, var, weight, bias, eps, axis)
    return error_in_ulp(y, expected, largest_term(x, mean, var, weight, bias, eps, axis))


def error_in_ulp(y: np.ndarray, expected: np.ndarray, size: np.ndarray) -> float:
    """The largest |y - expected| in ULP (of the type that works on y) of `size`."""
    error = np.abs(y.astype(np.longdouble) - expected)
    if y.dtype.itemsize == 2:
        widest = largest(y.astype(np.longdouble), expected)
        error = np.maximum(error - spacing(widest, y.dtype) / 2, 0)
    return float(np.max(error / spacing(size, working(y.dtype))))


class Gradient(NamedTuple):
    """Of the input, of weight and of bias; and for each value of dx its largest term."""

    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    largest: np.ndarray


def gradient(
    dy: np.ndarray,
    x: np.ndarray,
    mean: Any,
    rstd: Any,
    weight: Any = None,
    training: bool = True,
    axis: int = 1,
) -> Gradient:
    """dx = weight * rstd * (dy - mean(dy) - (x - mean) * rstd^2 * mean(dy * (x - mean))).

    In eval, where mean and rstd do not depend on x, weight * rstd * dy. The sums over a channel are
    rounded once.
    """
    wide = np.longdouble
    mean, rstd = np.asarray(mean, wide), np.asarray(rstd, wide)
    centred = x.astype(wide) - along(mean, x.ndim, axis)
    products = by_channel(dy.astype(wide) * centred, axis)
    total = np.array([math.fsum(row) for row in by_channel(dy, axis).astype(np.float64)], wide)
    product = np.array([wide(math.fsum(row)) for row in products])
    scale = rstd if weight is None else np.asarray(weight, wide) * rstd
    slopes = dy.astype(wide) * along(scale, x.ndim, axis)
    dx = size = slopes
    if training:
        count = products.shape[1]
        tilt = centred * along(-scale * rstd**2 * product / count, x.ndim, axis)
        level = along(-scale * total / count, x.ndim, axis)
        dx = slopes + tilt + level
        size = largest(slopes, tilt, level, dx)
    return Gradient(dx, product * rstd, total, np.abs(size))


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest |got - expected| / |expected|; infinite where something stands for zero."""
    error = np.abs(got.astype(np.longdouble) - expected)
    size = np.abs(np.asarray(expected, np.longdouble))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(error == 0, 0, error / size)))


def running(old: np.ndarray, new: np.ndarray, momentum: float) -> np.ndarray:
    """torch's running statistic: `momentum` is the weight of the new value."""
    return (1 - momentum) * old.astype(np.longdouble) + momentum * new


def array(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Seeded values of mean 1 and deviation 2."""
    return np.random.default_rng(seed).normal(1, 2, shape).astype(dtype)


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same values and axes as x, stored with axis 1 innermost."""
    return np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)


@st.composite
def shapes(draw: st.DrawFn, min_rank: int = 2, max_rank: int = 5) -> tuple[int, ...]:
    """(N, C, ...) with at least two values a channel."""
    channels = draw(st.integers(1, 70))
    rest = draw(st.lists(st.integers(1, 6), min_size=min_rank - 1, max_size=max_rank - 1))
    batch, *spatial = rest
    if math.prod(rest) == 1:
        batch = draw(st.integers(2, 40))
    return (batch, channels, *spatial)


@st.composite
def inputs(draw: st.DrawFn, min_rank: int = 2, max_rank: int = 5) -> tuple[np.ndarray, int]:
    """An array of float32 or float64, and the axis of its channels: 1, or the last."""
    shape = draw(shapes(min_rank, max_rank))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(draw(st.sampled_from([0, 1, -30])), draw(st.sampled_from([1, 5])), shape)
    if draw(st.booleans()):
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)).astype(dtype), x.ndim - 1
    return x.astype(dtype), 1


def activated(values: Any, activation: str | None, negative_slope: float = 0.01) -> np.ndarray:
    """The activations of ``ScaleShift``, as PyTorch and ONNX define them."""
    v = np.asarray(values, np.longdouble)
    return {
        None: lambda: v,
        "relu": lambda: np.maximum(v, 0),
        "relu6": lambda: np.clip(v, 0, 6),
        "leaky_relu": lambda: np.where(v < 0, v * np.longdouble(negative_slope), v),
        "silu": lambda: v / (1 + np.exp(-v)),
        "hardswish": lambda: v * np.clip(v + 3, 0, 6) / 6,
    }[activation]()
