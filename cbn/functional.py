"""Batch normalization of arrays: what the layers are made of, and torch's functional form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import (
    as_array,
    as_channel_array,
    check_axis,
    check_eps,
    check_momentum,
    pair,
    reject_channels,
)
from ._dispatch import kernel, kernels
from ._threads import check_num_threads, threads_for
from .stats import BatchStats

__all__ = ["batch_norm"]


class Parameters(NamedTuple):
    """Weight and bias as float64, one value a channel; what is absent is 1 and 0."""

    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, weight: Any, bias: Any, channels: int) -> Parameters:
        """Check the shapes and dtypes of `weight` and `bias`, either of which may be None."""
        return cls(
            np.ones(channels)
            if weight is None
            else as_channel_array(weight, channels, "weight").astype(np.float64),
            np.zeros(channels)
            if bias is None
            else as_channel_array(bias, channels, "bias").astype(np.float64),
        )


def coefficients(
    mean: np.ndarray,
    var: np.ndarray,
    parameters: Parameters,
    eps: float,
    dtype: np.dtype[Any],
    var_name: str,
) -> np.ndarray:
    """The m, a, b of (x - m) * a + b, shape (3, C), rounded to the type that works on `dtype`.

    Raises
    ------
    ValueError
        Where a variance is negative or NaN, or with eps would make the divisor zero.
    """
    reject_channels(~(var >= 0), var, var_name, "values >= 0")
    if eps == 0:
        reject_channels(var == 0, var, var_name, "values > 0 (eps is 0)")
    result = np.empty((3, mean.size))
    kernels.fuse(mean, var, parameters.weight, parameters.bias, eps, result, dtype.itemsize < 8)
    return result


def scale_shift(
    x: np.ndarray, mab: np.ndarray, axis: int, out: Any, num_threads: int | None
) -> np.ndarray:
    """(x - m) * a + b for coefficients of shape (3, C)."""
    layout, x3, y3, result = pair(x, out, axis)
    kernel("scale", layout, x.dtype)(x3, y3, mab, threads_for(num_threads, x.nbytes))
    return result


def normalize_batch(
    x: np.ndarray, parameters: Parameters, eps: float, axis: int, out: Any, num_threads: int | None
) -> tuple[np.ndarray, BatchStats]:
    """Normalize x with its own statistics, and return them too.

    Raises
    ------
    ValueError
        For one value per channel (torch's condition), or a channel of variance 0 where eps is 0.
    """
    channels = x.shape[axis]
    count = x.size // channels if channels else 0
    if count == 1:
        raise ValueError(f"x: expected more than 1 value per channel in training, got {x.shape}")
    layout, x3, y3, result = pair(x, out, axis)
    threads = threads_for(num_threads, x.nbytes)
    moments = np.empty((2, channels))
    stats = BatchStats(count, moments[0], moments[1])
    if eps == 0:  # nothing is written before every variance is known to be above zero
        kernel("stats", layout, x.dtype)(x3, moments, threads)
        reject_channels(stats.m2 == 0, stats.var, "variance of x", "values > 0 (eps is 0)")
    kernel("train", layout, x.dtype)(
        x3, y3, *parameters, eps, np.empty((3, channels)), moments, threads
    )
    return result, stats


def update_running(
    running_mean: np.ndarray, running_var: np.ndarray, stats: BatchStats, momentum: float
) -> None:
    """Move the running statistics, in place, by torch's convention.

    `momentum` is the weight of the new value, and the variance that goes in is the sample variance
    (ddof=1). Computed in float64 and rounded once.
    """
    keep = 1.0 - momentum
    running_mean[...] = keep * running_mean.astype(np.float64) + momentum * stats.mean
    running_var[...] = keep * running_var.astype(np.float64) + momentum * stats.unbiased_var


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Any = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Batch normalization, ``(x - mean) / sqrt(var + eps) * weight + bias``, over each channel.

    The semantics are those of ``torch.nn.functional.batch_norm``. In training the statistics are
    the batch's, with the population variance; the running statistics, if given, are updated in
    place: ``(1 - momentum) * running + momentum * batch``, with the sample variance. Otherwise
    the statistics are the running ones.

    Parameters
    ----------
    x : array of float32 or float64, at least 2-D
        Channels on `axis`. Taken as it is where the channel axis, or what follows it, is
        contiguous; copied otherwise. Anything with the buffer protocol or ``__dlpack__``.
    running_mean, running_var : float array of shape (C,), or None
        Both or neither; needed unless `training`. Writable in training.
    weight, bias : float array of shape (C,), optional
        1 and 0 by default.
    training : bool
        Whether to use, and pass on, the statistics of the batch.
    momentum : float
        The weight of the new value, from 0 to 1 (ONNX's momentum is 1 minus this).
    eps : float
        Added to the variance, under the root.
    axis : int
        The axis of the channels; 1 is torch's, -1 is channels last.
    out : array like x, optional
        Where to write the result; may be x itself. Honoured without a copy or refused.
    num_threads : int, optional
        None: what the machine allows, and one for arrays up to 1 MiB. The result has the same
        bits whatever their number.

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape and dtype, with x's order of axes in memory.

    Raises
    ------
    TypeError, ValueError
        For what is not accepted above; one value per channel in training; a running_var that is
        negative or NaN; a divisor of zero. Nothing has been changed then.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1.
    """
    array = as_array(x)
    axis = check_axis(axis, array.ndim)
    channels = array.shape[axis]
    eps = check_eps(eps)
    check_momentum(momentum)
    num_threads = check_num_threads(num_threads)
    parameters = Parameters.of(weight, bias, channels)
    if (running_mean is None) != (running_var is None):
        given, absent = ("running_mean", "running_var")[:: -1 if running_mean is None else 1]
        raise ValueError(f"{given} is given and {absent} is not; expected both or neither")
    if running_mean is None:
        if not training:
            raise ValueError("running_mean, running_var: expected arrays unless training, got None")
        return normalize_batch(array, parameters, eps, axis, out, num_threads)[0]
    mean = as_channel_array(running_mean, channels, "running_mean", writable=training)
    var = as_channel_array(running_var, channels, "running_var", writable=training)
    if not training:
        mab = coefficients(
            mean.astype(np.float64),
            var.astype(np.float64),
            parameters,
            eps,
            array.dtype,
            "running_var",
        )
        return scale_shift(array, mab, axis, out, num_threads)
    result, stats = normalize_batch(array, parameters, eps, axis, out, num_threads)
    update_running(mean, var, stats, momentum)
    return result
