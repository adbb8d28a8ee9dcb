"""Slow, plain answers to what cbn computes fast, the measure of their difference, and shapes.

Statistics are sums that `math.fsum` rounds once; the normalization of them is done in long double.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
    """The largest error of y, in ULP (of x's dtype) of the largest term of (x - m) * a + b.

    The terms are the product, b and the result; m is the mean rounded to x's dtype, and b the bias
    with that rounding carried into it.
    """
    wide = np.longdouble
    expected = batch_norm(x, mean, var, weight, bias, eps, axis)
    rounded = np.asarray(mean, wide).astype(x.dtype).astype(wide)
    a = (1 if weight is None else weight) / np.sqrt(np.asarray(var, wide) + wide(eps))
    b = (0 if bias is None else np.asarray(bias, wide)) + (rounded - mean) * a
    product = (x.astype(wide) - along(rounded, x.ndim, axis)) * along(a, x.ndim, axis)
    largest = np.maximum(
        np.abs(product), np.maximum(np.abs(along(b, x.ndim, axis)), np.abs(expected))
    )
    return float(np.max(np.abs(y.astype(wide) - expected) / np.spacing(largest.astype(x.dtype))))


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
    """An array of either dtype, and the axis of its channels: 1, or the last."""
    shape = draw(shapes(min_rank, max_rank))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(draw(st.sampled_from([0, 1, -30])), draw(st.sampled_from([1, 5])), shape)
    if draw(st.booleans()):
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)).astype(dtype), x.ndim - 1
    return x.astype(dtype), 1
