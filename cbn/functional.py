"""Batch normalization of arrays: what the layers are made of, and torch's functional form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import (
    arrange,
    as_array,
    as_channel_array,
    check_axis,
    check_eps,
    check_flag,
    check_momentum,
    compiled_call,
    overlap,
    reject_channels,
    to_ndarray,
)
from ._dispatch import element_of, kernels, run
from ._threads import check_num_threads, threads_for
from .stats import stats_of

__all__ = ["batch_norm", "batch_norm_backward"]


def is_single(dtype: np.dtype[Any]) -> bool:
    """Whether the arithmetic on arrays of `dtype` is done in float32."""
    element = element_of(dtype)
    return element is not None and element.single


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


def check_variance(var: np.ndarray, eps: float, name: str, *, batch: bool = False) -> None:
    """Raise ValueError where a variance has no 1 / sqrt(var + eps).

    That of a batch is never negative, and NaN where the batch holds one.
    """
    if not batch:
        reject_channels(~(var >= 0), var, name, "values >= 0")
    if eps == 0:
        reject_channels(var == 0, var, name, "values > 0 (eps is 0)")


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
    check_variance(var, eps, var_name)
    result = np.empty((3, mean.size))
    kernels.fuse(mean, var, parameters.weight, parameters.bias, eps, result, is_single(dtype))
    return result


def scale_shift(
    x: np.ndarray,
    mab: np.ndarray,
    axis: int,
    out: Any,
    num_threads: int | None,
    *,
    residual: np.ndarray | None = None,
    activation: int = 0,
    slope: float = 0.0,
) -> np.ndarray:
    """act((x - m) * a + b + residual) for coefficients of shape (3, C)."""
    inputs = {"x": x} if residual is None else {"x": x, "residual": residual}
    layout, views, y, result = arrange(inputs, out, axis)
    run(
        "scale",
        layout,
        [views[0], None if residual is None else views[1], y],
        [mab, activation, slope],
        threads_for(num_threads, x.nbytes),
    )
    return result


def normalize_batch(
    x: np.ndarray, parameters: Parameters, eps: float, axis: int, out: Any, num_threads: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Normalize x with its own statistics; return also them, (3, C), as the kernels write them.

    Raises
    ------
    ValueError
        For one value per channel (torch's condition), or a channel of variance 0 where eps is 0.
    """
    channels = x.shape[axis]
    if x.size == channels > 0:
        raise ValueError(f"x: expected more than 1 value per channel in training, got {x.shape}")
    layout, (x3,), y3, result = arrange({"x": x}, out, axis)
    threads = threads_for(num_threads, x.nbytes)
    moments = np.empty((3, channels))
    if eps == 0:  # nothing is written before every variance is known to be above zero
        run("stats", layout, [x3], [moments], threads)
        check_variance(stats_of(moments, x).var, eps, "variance of x", batch=True)
    run("train", layout, [x3, y3], [*parameters, eps, moments], threads)
    return result, moments


def update_running(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    moments: np.ndarray,
    count: int,
    momentum: float,
) -> None:
    """Move the running statistics, in place, by torch's convention.

    `momentum` is the weight of the new value, and the variance that goes in is the sample variance
    (ddof=1). Computed in float64 and rounded once; what is too large becomes infinite, as in torch.
    """
    pairs = ((running_mean, moments[0], 1.0), (running_var, moments[2], count - 1.0))
    for running, values, divisor in pairs:
        element = element_of(running.dtype)
        if element is not None and element.storage is None and running.flags.c_contiguous:
            kernels.move[element.special](running, values, divisor, momentum)
        else:
            with np.errstate(all="ignore"):
                moved = momentum * (values / divisor)
                running[...] = (1.0 - momentum) * running.astype(np.float64) + moved


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
    x : array of float16, bfloat16, float32 or float64, at least 2-D
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
        None: what the machine allows, and one for arrays up to 256 KiB. The result has the same
        bits whatever their number.

    Returns
    -------
    ndarray
        `out` as it was given, or a new array of x's shape and dtype, with x's order of axes in
        memory.

    Raises
    ------
    TypeError, ValueError
        For what is not accepted above; one value per channel in training; in eval a running_var
        that is negative or NaN; a divisor of zero. Nothing has been changed then.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1.
    """
    array = as_array(x)
    axis = check_axis(axis, array.ndim)
    channels = array.shape[axis]
    eps = check_eps(eps)
    training = check_flag(training, "training")
    check_momentum(momentum)
    num_threads = check_num_threads(num_threads)
    call = compiled_call(array, axis, num_threads, (weight, bias, running_mean, running_var))
    if call is not None:
        done = call.train(array, out, eps, momentum) if training else call.evaluate(array, out, eps)
        if done is not None:
            return done[0] if training else done  # type: ignore[no-any-return]  # compiled
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
    _check_apart(mean, var, array, out)
    result, moments = normalize_batch(array, parameters, eps, axis, out, num_threads)
    update_running(mean, var, moments, array.size // channels, momentum)
    return result


def _check_apart(mean: np.ndarray, var: np.ndarray, x: np.ndarray, out: Any) -> None:
    """Refuse running statistics that training would write into something else."""
    if overlap(mean, var):
        raise ValueError("running_mean: shares memory with running_var")
    named = {"x": x} if out is None or out is x else {"x": x, "out": as_array(out, "out")}
    for name, other in named.items():
        for own, running in (("running_mean", mean), ("running_var", var)):
            if overlap(running, other):
                raise ValueError(f"{own}: shares memory with {name}")


def batch_norm_backward(
    dy: Any,
    x: Any,
    weight: Any,
    mean: Any,
    rstd: Any,
    *,
    training: bool = True,
    axis: int = 1,
    out: Any = None,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient of batch normalization.

    Parameters
    ----------
    dy : array like x
        The gradient of the result.
    x : array of float16, bfloat16, float32 or float64, at least 2-D
        What was normalized.
    weight : float array of shape (C,), or None for 1
    mean, rstd : float array of shape (C,)
        The mean, and ``1 / sqrt(var + eps)``, that x was normalized with.
    training : bool
        Whether mean and rstd were the statistics of x; in eval they do not depend on it, and
        ``dx = dy * weight * rstd``.
    axis, num_threads
        As in ``batch_norm``.
    out : array like x, optional
        Where to write dx; may be x or dy itself.

    Returns
    -------
    dx : ndarray like x
    dweight, dbias : ndarray of shape (C,)
        Of weight's dtype, or without one of the type that the arithmetic is done in; summed in
        float64.

    Raises
    ------
    TypeError, ValueError
        For what is not accepted above; nothing has been changed then.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", 2015, section 3.
    """
    array, slope = as_array(x), as_array(dy, "dy")
    axis = check_axis(axis, array.ndim)
    channels = array.shape[axis]
    if slope.shape != array.shape:
        raise ValueError(f"dy: expected shape {array.shape}, like x, got {slope.shape}")
    if slope.dtype != array.dtype:
        raise TypeError(f"dy: expected {array.dtype}, like x, got {slope.dtype}")
    training = check_flag(training, "training")
    num_threads = check_num_threads(num_threads)
    call = compiled_call(array, axis, num_threads, (weight, None, mean, rstd))
    if call is not None:
        done = call.gradient_of(slope, array, out, not training)
        if done is not None:
            return done[0], *_in_type_of(weight, array, done[1])
    parameters = Parameters.of(weight, None, channels)
    mean64 = as_channel_array(mean, channels, "mean").astype(np.float64)
    rstd64 = as_channel_array(rstd, channels, "rstd").astype(np.float64)
    reject_channels(rstd64 < 0, rstd64, "rstd", "values >= 0")
    layout, (x3, dy3), dx3, dx = arrange({"x": array, "dy": slope}, out, axis)
    gradients = np.empty((2, channels))
    run(
        "backward",
        layout,
        [dy3, x3, dx3],
        [parameters.weight, mean64, rstd64, gradients, not training],
        threads_for(num_threads, array.nbytes),
    )
    return dx, *_in_type_of(weight, array, gradients)


def _in_type_of(weight: Any, x: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dweight and dbias, in the type of weight or without one in that of the arithmetic."""
    if weight is None:
        cast = gradients.astype(np.float32 if is_single(x.dtype) else np.float64)
    else:
        cast = gradients.astype(to_ndarray(weight, "weight").dtype)
    return cast[0], cast[1]
