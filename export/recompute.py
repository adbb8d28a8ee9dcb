"""One BatchNormalization node: what onnxruntime made of its input, against what cbn makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import cbn

from . import tolerance
from .tolerance import Agreement, compare

__all__ = [
    "Parameters",
    "check_eval",
    "check_running",
    "check_training",
    "eval_output",
    "running_statistics",
    "training_output",
    "worst",
]

# Values compared at once: some float64 arrays of this size are all the memory that it takes.
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """What a node normalizes with: arrays of shape (C,) in ONNX's terms.

    Attributes
    ----------
    scale, bias, mean, var : numpy.ndarray
    eps : float
    momentum : float
        ONNX's: the weight of the old running value.
    """

    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float
    momentum: float = 0.9


def worst(first: Agreement, second: Agreement) -> Agreement:
    """Join two comparisons: the largest error, and the ULP of whichever is nearer to failing."""
    near = second if second.ratio > first.ratio else first
    return dataclasses.replace(near, max_abs_error=max(first.max_abs_error, second.max_abs_error))


def eval_output(
    x: np.ndarray, parameters: Parameters, num_threads: int | None = None
) -> np.ndarray:
    """Normalize with stored statistics, by cbn, in x's type (16-bit ones in float32)."""
    result = cbn.batch_norm(
        _working(x),
        parameters.mean,
        parameters.var,
        parameters.scale,
        parameters.bias,
        eps=parameters.eps,
        num_threads=num_threads,
    )
    return result.astype(x.dtype, copy=False)


def training_output(
    x: np.ndarray, parameters: Parameters, num_threads: int | None = None
) -> np.ndarray:
    """Normalize with the batch's statistics, by cbn, in x's type (16-bit ones in float32)."""
    result = cbn.batch_norm(
        _working(x),
        None,
        None,
        parameters.scale,
        parameters.bias,
        training=True,
        eps=parameters.eps,
        num_threads=num_threads,
    )
    return result.astype(x.dtype, copy=False)


def running_statistics(
    stats: cbn.BatchStats, parameters: Parameters
) -> tuple[np.ndarray, np.ndarray]:
    """Blend stored and batch statistics by ONNX's rule, in float64.

    ONNX BatchNormalization, opset 14: ``running = input * momentum + current * (1 - momentum)``,
    and the current variance is that of the population. torch's momentum is one minus this, and its
    variance that of the sample.
    """
    keep = parameters.momentum
    return (
        keep * parameters.mean.astype(np.float64) + (1 - keep) * stats.mean,
        keep * parameters.var.astype(np.float64) + (1 - keep) * stats.var,
    )


def check_eval(
    x: np.ndarray, actual: np.ndarray, expected: np.ndarray, parameters: Parameters
) -> Agreement:
    """Compare outputs of a node with stored statistics; x and both outputs are (N, C, ...)."""
    return _compare_outputs(
        x, actual, expected, parameters, parameters.mean, parameters.var, tolerance.EVAL_ULP
    )


def check_training(
    x: np.ndarray,
    actual: np.ndarray,
    expected: np.ndarray,
    parameters: Parameters,
    stats: cbn.BatchStats,
) -> Agreement:
    """Compare outputs of a node that normalizes with the batch's statistics, given in `stats`."""
    dtype = _working(x).dtype
    depth = tolerance.summation_depth(x.shape, dtype)
    rms = np.sqrt(np.square(stats.mean) + stats.var)
    spread = tolerance.mean_error_squared(rms, depth, dtype) / (2 * (stats.var + parameters.eps))
    # A wrong variance moves a value by no more than its distance from the mean.
    spread = np.minimum(spread, 1 / (4 * float(np.finfo(dtype).eps)))
    return _compare_outputs(
        x,
        actual,
        expected,
        parameters,
        stats.mean,
        stats.var,
        tolerance.training_ulp(depth),
        rms=rms,
        spread=spread,
    )


def check_running(
    shape: tuple[int, ...],
    actual_mean: np.ndarray | None,
    actual_var: np.ndarray | None,
    expected: tuple[np.ndarray, np.ndarray],
    parameters: Parameters,
    stats: cbn.BatchStats,
    dtype: np.dtype[Any],
    *,
    unbiased: bool = False,
) -> dict[str, Agreement]:
    """Compare running statistics, shape (C,), of an x of `shape` and working type `dtype`.

    With `unbiased` the variance carries torch's n / (n - 1), which scales its error too.
    """
    depth = tolerance.summation_depth(shape, dtype)
    bound = tolerance.running_ulp(depth)
    rms = np.sqrt(np.square(stats.mean) + stats.var)
    new = 1 - parameters.momentum
    old = {
        "running_mean": parameters.momentum * np.abs(parameters.mean.astype(np.float64)),
        "running_var": parameters.momentum * np.abs(parameters.var.astype(np.float64)),
    }
    spread = np.maximum(stats.var, tolerance.mean_error_squared(rms, depth, dtype))
    if dtype == np.float64:
        # cbn merges blocks of a channel through means rounded to float64, as wide as x itself here.
        spread = np.maximum(spread, 2 * np.abs(stats.mean) * np.sqrt(stats.var) / bound)
    terms = {
        "running_mean": np.maximum(old["running_mean"], new * rms),
        "running_var": np.maximum(old["running_var"], new * spread),
    }
    bounds = {"running_mean": float(bound), "running_var": float(bound)}
    if unbiased:
        bounds["running_var"] = bound * stats.count / (stats.count - 1) + 4
    result: dict[str, Agreement] = {}
    pairs = zip(("running_mean", "running_var"), (actual_mean, actual_var), expected, strict=True)
    for name, actual, wanted in pairs:
        if actual is not None:
            limit = tolerance.in_type(bounds[name], actual.dtype)
            # An infinity in x makes inf or NaN of a sum, by the order of its operations.
            undefined = ~np.isfinite(stats.mean) & ~np.isfinite(actual)
            wanted = np.where(undefined, actual, wanted).astype(actual.dtype)
            result[name] = compare(actual, wanted, terms[name], limit)
    return result


def _working(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.itemsize >= 4 else x.astype(np.float32)


def _compare_outputs(
    x: np.ndarray,
    actual: np.ndarray,
    expected: np.ndarray,
    parameters: Parameters,
    mean: np.ndarray,
    var: np.ndarray,
    bound: float,
    *,
    rms: np.ndarray | None = None,
    spread: np.ndarray | None = None,
) -> Agreement:
    """Compare in ULP of the largest of x * a, mean * a, bias and y, some samples at a time.

    `rms` adds the term rms * a, `spread` the term (x - mean) * a * spread; each is of shape (C,).
    """
    bound = tolerance.in_type(bound, actual.dtype)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return compare(actual, expected, 0.0, bound)
    column = (-1, *(1,) * (x.ndim - 2))
    factor = _factor(parameters, var, actual.dtype)
    constant = np.maximum(np.abs(mean.astype(np.float64)) * factor, np.abs(parameters.bias))
    if rms is not None:
        constant = np.maximum(constant, rms * factor)
    total = Agreement(0.0, 0.0, bound)
    step = max(1, _BLOCK * len(x) // max(x.size, 1))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        values = x[part].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            terms = np.abs(values) * factor.reshape(column)
            if spread is not None:
                apart = np.abs(values - mean.reshape(column)) * (factor * spread).reshape(column)
                np.fmax(terms, apart, out=terms)
            np.fmax(terms, constant.reshape(column), out=terms)
            np.fmax(terms, np.abs(expected[part]), out=terms)
        total = worst(total, compare(actual[part], expected[part], terms, bound))
    return total


def _factor(parameters: Parameters, var: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return |scale| / sqrt(var + eps), or where that has lost precision to underflow, more."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.abs(parameters.scale.astype(np.float64)) / np.sqrt(
            var.astype(np.float64) + parameters.eps
        )
    return np.fmax(factor, float(np.finfo(dtype).tiny))
