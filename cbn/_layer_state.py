"""What a layer holds: options, parameters and running statistics, all checked when set."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Self, overload

import numpy as np

from ._arrays import as_channel_array, check_dtype, check_eps, check_flag, check_momentum
from ._threads import check_num_threads

__all__ = ["LayerState"]


class _ChannelArray:
    """A parameter of shape (C,): checked and cast when set, None where the layer has no such."""

    def __init__(self, switch: str) -> None:
        self._switch = switch

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, layer: None, owner: type) -> Self: ...

    @overload
    def __get__(self, layer: LayerState, owner: type) -> np.ndarray | None: ...

    def __get__(self, layer: LayerState | None, owner: type) -> Self | np.ndarray | None:
        return self if layer is None else layer._arrays[self._name]

    def __set__(self, layer: LayerState, value: Any) -> None:
        if layer._arrays[self._name] is None:
            raise ValueError(f"{self._name}: the layer was made with {self._switch}=False")
        layer._arrays[self._name] = layer._checked(self._name, value)
        layer._forget()


class LayerState:
    """The state of a BatchNorm; its docstring lists the parameters.

    Whatever changes what a call computes calls `_forget`.
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
        self._forget()
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self.eps = eps
        self.momentum = momentum
        self.channels_last = channels_last
        self.num_threads = num_threads
        self._training = True
        self._affine = check_flag(affine, "affine")
        self._track_running_stats = check_flag(track_running_stats, "track_running_stats")
        self._arrays: dict[str, np.ndarray | None] = dict.fromkeys(
            ("weight", "bias", "running_mean", "running_var")
        )
        self._num_batches_tracked: int | None = None
        self.reset_parameters()

    def _forget(self) -> None:
        """Drop what calls have cached: the map of eval, and what training holds of the arrays."""
        self._fast: Any = None
        self._compiled_calls: dict[np.dtype[Any], Any] = {}

    @property
    def num_features(self) -> int:
        """The number of channels."""
        return self._num_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._dtype

    @property
    def training(self) -> bool:
        """Whether calls use, and pass on, the statistics of the batch."""
        return self._training

    @training.setter
    def training(self, value: bool) -> None:
        self._training = check_flag(value, "training")

    @property
    def eps(self) -> float:
        """What is added to the variance, under the root."""
        return self._eps

    @eps.setter
    def eps(self, value: float) -> None:
        self._eps = check_eps(value)
        self._forget()

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
        self._channels_last = check_flag(value, "channels_last")
        self._forget()

    @property
    def num_threads(self) -> int | None:
        """The number of threads of a call; None: what the machine allows."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, value: int | None) -> None:
        self._num_threads = check_num_threads(value)
        self._forget()

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
        self._forget()
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
        self._training = check_flag(mode, "mode")
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
        self._forget()
        self._num_batches_tracked = tracked

    def _checked(self, name: str, value: Any) -> np.ndarray:
        return as_channel_array(value, self._num_features, name).astype(self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_arrays": dict(self._arrays),
            "_fast": None,
            "_compiled_calls": {},
            "_last": None,
        }

    def __repr__(self) -> str:
        text = (
            f"{type(self).__name__}({self._num_features}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self._affine}, "
            f"track_running_stats={self._track_running_stats}"
        )
        if self._dtype != np.float32:
            text += f", dtype={str(self._dtype)!r}"
        return text + (", channels_last=True)" if self.channels_last else ")")


# Named in Python's own messages on arguments that are missing or too many.
LayerState.__init__.__qualname__ = "BatchNorm.__init__"


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
