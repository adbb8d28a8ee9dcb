"""BatchNorm1d, BatchNorm2d and BatchNorm3d: torch's layers, over NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import as_array, as_channel_array, check_dtype, overlap
from ._dispatch import element_of, kernels
from ._layer_state import LayerState
from ._threads import thread_rule
from .functional import (
    Parameters,
    batch_norm_backward,
    check_variance,
    coefficients,
    normalize_batch,
    scale_shift,
    update_running,
)
from .scale_shift import ScaleShift
from .stats import BatchStats, batch_stats, stats_of

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]

_AXES = {2: "N, C", 3: "N, C, L", 4: "N, C, H, W", 5: "N, C, D, H, W"}


class BatchNorm(LayerState):
    """What the three layers share; use one of them.

    Names, defaults and semantics are those of ``torch.nn.BatchNorm1d/2d/3d``: in training the
    batch is normalized with its own mean and population variance, and the running statistics move
    by ``momentum`` towards its mean and sample variance; in eval the running statistics are used.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
        Added to the variance, under the root.
    momentum : float or None
        Weight of the new value in the running statistics; None: the average of all batches.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        Without, eval uses the statistics of the batch too.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Of the parameters. The arithmetic follows the dtype of x.
    channels_last : bool
        Take (N, ..., C) in place of (N, C, ...).
    num_threads : int, optional
        None: what the machine allows, and one for arrays up to 256 KiB.

    Attributes
    ----------
    weight, bias : ndarray of shape (C,), or None
    running_mean, running_var : ndarray of shape (C,), or None
    num_batches_tracked : int, or None
    training : bool

    Notes
    -----
    A failed call changes nothing. A layer may be called from many threads at once in eval, not in
    training.
    """

    @property
    def _axis(self) -> int:
        return -1 if self.channels_last else 1

    def _input(self, x: Any) -> np.ndarray:
        array = as_array(x)
        if array.ndim not in self._ranks:
            ranks = " or ".join(f"{rank}D" for rank in self._ranks)
            axes = " or ".join(f"({self._axes(rank)})" for rank in self._ranks)
            raise ValueError(f"x: expected {ranks} input {axes}, got {array.ndim}D {array.shape}")
        if array.shape[self._axis] != self._num_features:
            raise ValueError(
                f"x: expected {self._num_features} channels on axis {self._axis % array.ndim} of "
                f"({self._axes(array.ndim)}), got {array.shape[self._axis]} in {array.shape}"
            )
        return array

    def _axes(self, rank: int) -> str:
        names = _AXES[rank].split(", ")
        if self.channels_last:
            names.append(names.pop(1))
        return ", ".join(names)

    def __call__(self, x: Any, out: Any = None) -> np.ndarray:
        """Normalize x; in training also move the running statistics.

        Parameters
        ----------
        x : array of float16, bfloat16, float32 or float64
            (N, C) or (N, C, L) for 1d, (N, C, H, W) for 2d, (N, C, D, H, W) for 3d, or with the
            channels last.
        out : array like x, optional
            Where to write; may be x itself. Honoured without a copy or refused.

        Returns
        -------
        ndarray
            `out`, or a new array of x's shape and dtype.

        Raises
        ------
        TypeError, ValueError
            See ``cbn.batch_norm``. Nothing has been changed then.
        """
        fast = self._fast
        if fast is not None and not self._training:
            result = fast._attempt(x, out)
            if result is not None:
                return result  # type: ignore[no-any-return]  # compiled
        if self._training:
            done = self._attempt_training(x, out)
            if done is not None:
                return done
        array = self._input(x)
        axis = self._axis % array.ndim
        if not self._training and self._track_running_stats:
            mab = self._coefficients(array.dtype)
            self._fast = self._fast_map(mab, array.dtype)
            return scale_shift(array, mab, axis, out, self.num_threads)
        parameters = Parameters.of(self.weight, self.bias, self._num_features)
        if self._training:
            for name in ("running_mean", "running_var"):
                if (running := self._arrays[name]) is not None:  # before anything is written
                    as_channel_array(running, self._num_features, name, writable=True)
        result, moments = normalize_batch(array, parameters, self.eps, axis, out, self.num_threads)
        if self._training:
            self._track(moments, array.size // self._num_features)
            overwritten = out is not None and overlap(array, as_array(result, "out"))
            self._last = None if overwritten else (array, moments)
        return result

    def track(self, stats: BatchStats) -> None:
        """Move the running statistics as a training forward with these statistics does.

        For statistics that were gathered elsewhere: merged over processes, say. A layer without
        running statistics is left as it is.

        Parameters
        ----------
        stats : BatchStats
            Of C channels and more than one value each.

        Raises
        ------
        ValueError
            For another number of channels, or a single value.
        TypeError
            For something else than BatchStats.
        """
        if not isinstance(stats, BatchStats):
            raise TypeError(f"stats: expected BatchStats, got {type(stats).__name__}")
        if stats.mean.shape != (self._num_features,):
            raise ValueError(
                f"stats: expected {self._num_features} channels, got {stats.mean.size}"
            )
        if stats.count < 2:
            raise ValueError("stats: expected more than 1 value per channel, got 1")
        self._track(np.stack([stats.mean, np.zeros_like(stats.mean), stats.m2]), stats.count)

    def _track(self, moments: np.ndarray, count: int) -> None:
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            return
        tracked = (self._num_batches_tracked or 0) + 1
        momentum = 1.0 / tracked if self._momentum is None else self._momentum
        update_running(mean, var, moments, count, momentum)
        self._num_batches_tracked = tracked

    def backward(
        self, dy: Any, x: Any = None, out: Any = None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Gradient of a forward pass.

        Parameters
        ----------
        dy : array like x
            The gradient of the result.
        x : array, optional
            What went in. Without, the last training forward's: the layer keeps a reference to it,
            not a copy, until the next one. Needed in eval, where nothing is kept, and after a
            training forward in place.
        out : array like x, optional
            Where to write dx; may be dy or x.

        Returns
        -------
        dx : ndarray like x
        dweight, dbias : ndarray of shape (C,), or None without affine

        Raises
        ------
        ValueError, TypeError
            Where there is no x, or `dy` or `out` does not fit it; a running_var that is negative or
            NaN; a divisor of zero. Nothing has been changed then.
        """
        if x is None and (done := self._attempt_gradient(dy, out)) is not None:
            return done
        frozen = not self._training and self._track_running_stats
        if x is not None:
            array = self._input(x)
            stats = (
                None
                if frozen
                else batch_stats(array, axis=self._axis, num_threads=self.num_threads)
            )
        elif self._last is None or not self._training:
            raise ValueError(
                "x: expected an array, since no training forward came before, or one that wrote "
                "over its input; got None"
            )
        else:
            array, moments = self._last
            stats = stats_of(moments, array)
        if stats is None:
            mean, var = self._running()
            check_variance(var, self.eps, "running_var")
        else:
            mean, var = stats.mean, stats.var
            check_variance(var, self.eps, "variance of x", batch=True)
        dx, dweight, dbias = batch_norm_backward(
            dy,
            array,
            self.weight,
            mean,
            1.0 / np.sqrt(var + self.eps),
            training=not frozen,
            axis=self._axis,
            out=out,
            num_threads=self.num_threads,
        )
        return (dx, dweight, dbias) if self._affine else (dx, None, None)

    def _compiled_call(self, dtype: np.dtype[Any]) -> Any:
        """What serves contiguous arrays of a dtype in training; its parameters are the layer's."""
        call = self._compiled_calls.get(dtype)
        if call is None:
            call = kernels.BatchNormCall()
            if element_of(dtype) is not None:
                call._prepare(
                    self._num_features,
                    dtype,
                    self.channels_last,
                    (min(self._ranks), max(self._ranks)),
                    thread_rule(self.num_threads),
                    (self.weight, self.bias, self.running_mean, self.running_var),
                )
                self._compiled_calls[dtype] = call
        return call

    def _attempt_training(self, x: Any, out: Any) -> np.ndarray | None:
        """A training forward of a contiguous array; None for all others."""
        if type(x) is not np.ndarray:
            return None
        tracked = (self._num_batches_tracked or 0) + 1
        momentum = 1.0 / tracked if self._momentum is None else self._momentum
        done = self._compiled_call(x.dtype).train(x, out, self._eps, momentum)
        if done is None:
            return None
        result, moments, over = done
        if self._num_batches_tracked is not None:
            self._num_batches_tracked = tracked
        self._fast = None
        self._last = None if over else (x, moments)
        return result  # type: ignore[no-any-return]  # compiled

    def _attempt_gradient(
        self, dy: Any, out: Any
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None] | None:
        """The gradient of the last training forward, of contiguous arrays; None for all others."""
        if self._last is None or not self._training:
            return None
        x, moments = self._last
        done = self._compiled_call(x.dtype).gradient(dy, x, out, moments, self._eps)
        if done is None:
            return None
        dx, gradients = done
        if not self._affine:
            return dx, None, None
        cast = gradients.astype(self._dtype)
        return dx, cast[0], cast[1]

    def _fast_map(self, mab: np.ndarray, dtype: np.dtype[Any]) -> Any:
        """What serves contiguous arrays until a parameter changes, or None."""
        watched = tuple(array for array in self._arrays.values() if array is not None)
        if any(array.dtype.kind != "f" for array in watched):  # no buffer of bfloat16
            return None
        fast = kernels.AffineMap()
        ranks = (min(self._ranks), max(self._ranks))
        rule = thread_rule(self.num_threads)
        fast._prepare(mab, dtype, self.channels_last, 0, 0.0, ranks, watched, rule)
        return fast

    def _running(self) -> tuple[np.ndarray, np.ndarray]:
        if self.running_mean is None or self.running_var is None:
            raise ValueError("track_running_stats is False: there are no running statistics to use")
        return self.running_mean.astype(np.float64), self.running_var.astype(np.float64)

    def _coefficients(self, dtype: np.dtype[Any]) -> np.ndarray:
        return coefficients(
            *self._running(),
            Parameters.of(self.weight, self.bias, self._num_features),
            self.eps,
            dtype,
            "running_var",
        )

    def fuse(
        self, activation: str | None = None, *, negative_slope: float = 0.01, dtype: Any = None
    ) -> ScaleShift:
        """The eval form of the layer as it is now, as an immutable map of its own.

        Parameters
        ----------
        activation, negative_slope
            What is applied after it; see ``ScaleShift``.
        dtype : optional
            Of the arrays that the map will take; the layer's by default.

        Raises
        ------
        ValueError
            Without running statistics, or where running_var is negative or NaN.
        """
        dtype = self._dtype if dtype is None else check_dtype(dtype)
        return ScaleShift(
            *self._coefficients(dtype),
            activation=activation,
            negative_slope=negative_slope,
            dtype=dtype,
            axis=self._axis,
            num_threads=self.num_threads,
        )


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C) or (N, C, L); the mean runs over N, or N and L."""

    _ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalization of (N, C, H, W); the mean runs over N, H and W."""

    _ranks = (4,)


class BatchNorm3d(BatchNorm):
    """Batch normalization of (N, C, D, H, W); the mean runs over N, D, H and W."""

    _ranks = (5,)


_shared = (BatchNorm.__doc__ or "").partition("use one of them.")[2]  # empty under -OO
for _layer in (BatchNorm1d, BatchNorm2d, BatchNorm3d):
    _layer.__doc__ = f"{_layer.__doc__ or ''}\n{_shared}"
