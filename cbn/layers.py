"""BatchNorm1d, BatchNorm2d and BatchNorm3d: torch's layers, over NumPy arrays."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Self, overload

import numpy as np

from ._arrays import (
    as_array,
    as_channel_array,
    check_dtype,
    check_eps,
    check_momentum,
    overlap,
)
from ._dispatch import kernels
from ._threads import check_num_threads
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


class _ChannelArray:
    """A parameter of shape (C,): checked and cast when set, None where the layer has no such."""

    def __init__(self, switch: str) -> None:
        self._switch = switch

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, layer: None, owner: type) -> Self: ...

    @overload
    def __get__(self, layer: BatchNorm, owner: type) -> np.ndarray | None: ...

    def __get__(self, layer: BatchNorm | None, owner: type) -> Self | np.ndarray | None:
        return self if layer is None else layer._arrays[self._name]

    def __set__(self, layer: BatchNorm, value: Any) -> None:
        if layer._arrays[self._name] is None:
            raise ValueError(f"{self._name}: the layer was made with {self._switch}=False")
        layer._arrays[self._name] = layer._checked(self._name, value)
        layer._fast = None


class BatchNorm:
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
        None: what the machine allows, and one for arrays up to 1 MiB.

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

    _ranks: ClassVar[tuple[int, ...]] = ()

    weight = _ChannelArray("affine")
    bias = _ChannelArray("affine")
    running_mean = _ChannelArray("track_running_stats")
    running_var = _ChannelArray("track_running_stats")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = "float32",
        channels_last: bool = False,
        num_threads: int | None = None,
    ) -> None:
        if not self._ranks:
            raise TypeError("BatchNorm: use BatchNorm1d, BatchNorm2d or BatchNorm3d")
        try:
            self._num_features = operator.index(num_features)
        except TypeError:
            raise TypeError(
                f"num_features: expected an int, got {type(num_features).__name__}"
            ) from None
        if not 1 <= self._num_features < 1 << 40:
            raise ValueError(f"num_features: expected an int from 1 to 2**40, got {num_features}")
        self._dtype = check_dtype(dtype)
        self._fast: Any = None
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self.eps = eps
        self.momentum = momentum
        self.channels_last = channels_last
        self.num_threads = num_threads
        self.training = True
        self._affine = bool(affine)
        self._track_running_stats = bool(track_running_stats)
        self._arrays: dict[str, np.ndarray | None] = dict.fromkeys(
            ("weight", "bias", "running_mean", "running_var")
        )
        self._num_batches_tracked: int | None = None
        self.reset_parameters()

    # -- state ----------------------------------------------------------------------------------

    @property
    def num_features(self) -> int:
        """The number of channels."""
        return self._num_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._dtype

    @property
    def eps(self) -> float:
        """What is added to the variance, under the root."""
        return self._eps

    @eps.setter
    def eps(self, value: float) -> None:
        self._eps = check_eps(value)
        self._fast = None

    @property
    def momentum(self) -> float | None:
        """The weight of the new value in the running statistics; None: the average of all."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self._momentum = check_momentum(value, none=True)

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the last axis, and not the second."""
        return self._channels_last

    @channels_last.setter
    def channels_last(self, value: bool) -> None:
        self._channels_last = bool(value)
        self._fast = None

    @property
    def num_threads(self) -> int | None:
        """The number of threads of a call; None: what the machine allows."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, value: int | None) -> None:
        self._num_threads = check_num_threads(value)
        self._fast = None

    @property
    def affine(self) -> bool:
        """Whether there are a weight and a bias."""
        return self._affine

    @property
    def track_running_stats(self) -> bool:
        """Whether there are running statistics."""
        return self._track_running_stats

    @property
    def num_batches_tracked(self) -> int | None:
        """How many training forwards moved the running statistics; None where there are none."""
        return self._num_batches_tracked

    @num_batches_tracked.setter
    def num_batches_tracked(self, value: Any) -> None:
        if not self._track_running_stats:
            raise ValueError(
                "num_batches_tracked: the layer was made with track_running_stats=False"
            )
        self._num_batches_tracked = _to_count(value)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the count of batches to 0."""
        self._fast = None
        if self._track_running_stats:
            self._arrays["running_mean"] = np.zeros(self._num_features, self._dtype)
            self._arrays["running_var"] = np.ones(self._num_features, self._dtype)
            self.num_batches_tracked = 0

    def reset_parameters(self) -> None:
        """Reset the running statistics, the weight to 1 and the bias to 0."""
        self.reset_running_stats()
        if self._affine:
            self._arrays["weight"] = np.ones(self._num_features, self._dtype)
            self._arrays["bias"] = np.zeros(self._num_features, self._dtype)

    def train(self, mode: bool = True) -> Self:
        """Switch to training, or with ``mode=False`` to eval; returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch to eval; returns the layer."""
        return self.train(False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters and running statistics, under torch's keys and in its order."""
        state = {name: array.copy() for name, array in self._arrays.items() if array is not None}
        if self.num_batches_tracked is not None:
            state["num_batches_tracked"] = np.array(self.num_batches_tracked, np.int64)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over parameters and running statistics from arrays or tensors under torch's keys.

        Parameters
        ----------
        state : mapping
            Values with the buffer protocol, ``__dlpack__`` or ``__array__``, of shape (C,); they
            are cast to the layer's dtype. ``num_batches_tracked`` may be missing, as in files of
            PyTorch before 0.4.1; it is left as it is then.

        Raises
        ------
        ValueError, TypeError
            For keys that are missing or not the layer's, or values of another shape or kind.
            Nothing has been changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        expected = list(self.state_dict())
        missing = [key for key in expected if key not in state and key != "num_batches_tracked"]
        unexpected = [key for key in state if key not in expected]
        if missing or unexpected:
            parts = [f"missing {missing}"] * bool(missing) + [f"unexpected {unexpected}"] * bool(
                unexpected
            )
            raise ValueError(f"state: expected the keys {expected}; {', '.join(parts)}")
        arrays = {
            name: self._checked(name, state[name])
            for name, array in self._arrays.items()
            if array is not None
        }
        tracked = self.num_batches_tracked
        if "num_batches_tracked" in state:
            tracked = _to_count(state["num_batches_tracked"])
        for name, array in arrays.items():
            existing = self._arrays[name]
            assert existing is not None
            existing[...] = array  # in place, as torch does: whoever holds the array sees it
        self._fast = None
        self._num_batches_tracked = tracked

    def _checked(self, name: str, value: Any) -> np.ndarray:
        return as_channel_array(value, self._num_features, name).astype(self._dtype)

    # -- computation ----------------------------------------------------------------------------

    @property
    def _axis(self) -> int:
        return -1 if self.channels_last else 1

    def _input(self, x: Any) -> np.ndarray:
        array = as_array(x)
        if array.ndim not in self._ranks:
            ranks = " or ".join(f"{rank}D" for rank in self._ranks)
            axes = " or ".join(f"({self._axes(rank)})" for rank in self._ranks)
            raise ValueError(f"expected {ranks} input {axes}, got {array.ndim}D {array.shape}")
        if array.shape[self._axis] != self._num_features:
            raise ValueError(
                f"expected {self._num_features} channels on axis {self._axis % array.ndim} of "
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
        if fast is not None and not self.training:
            result = fast.attempt(x, out)
            if result is not None:
                return result  # type: ignore[no-any-return]  # compiled
        array = self._input(x)
        axis = self._axis % array.ndim
        if not self.training and self._track_running_stats:
            mab = self._coefficients(array.dtype)
            self._fast = self._fast_map(mab, array.dtype)
            return scale_shift(array, mab, axis, out, self.num_threads)
        parameters = Parameters.of(self.weight, self.bias, self._num_features)
        result, moments = normalize_batch(array, parameters, self.eps, axis, out, self.num_threads)
        if self.training:
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
        frozen = not self.training and self._track_running_stats
        if x is not None:
            array = self._input(x)
            stats = (
                None
                if frozen
                else batch_stats(array, axis=self._axis, num_threads=self.num_threads)
            )
        elif self._last is None or not self.training:
            raise ValueError(
                "x: expected an array, since no training forward that left its input whole came "
                "before; got None"
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

    def _fast_map(self, mab: np.ndarray, dtype: np.dtype[Any]) -> Any:
        """What serves small contiguous arrays until a parameter changes, or None."""
        if dtype.kind != "f" or self.num_threads not in (None, 1):
            return None
        watched = tuple(array for array in self._arrays.values() if array is not None)
        if any(array.dtype.kind != "f" for array in watched):  # no buffer of bfloat16
            return None
        fast = kernels.AffineMap()
        ranks = (min(self._ranks), max(self._ranks))
        fast.prepare(mab, dtype.char, self.channels_last, 0, 0.0, ranks, watched)
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": dict(self._arrays), "_fast": None, "_last": None}

    def __repr__(self) -> str:
        text = (
            f"{type(self).__name__}({self._num_features}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self._affine}, "
            f"track_running_stats={self._track_running_stats}"
        )
        if self._dtype != np.float32:
            text += f", dtype={str(self._dtype)!r}"
        return text + (", channels_last=True)" if self.channels_last else ")")


def _to_count(value: Any) -> int:
    try:
        count = operator.index(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"num_batches_tracked: expected one integer, got {type(value).__name__}"
        ) from None
    if count < 0:
        raise ValueError(f"num_batches_tracked: expected an integer >= 0, got {count}")
    return count


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
