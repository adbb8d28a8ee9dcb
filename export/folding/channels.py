"""What a batch norm in eval mode computes, as arrays that can be carried through a graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from .reasons import Refusal

__all__ = ["ChannelMap", "Norm"]

# Values in a map: several float64 arrays of its size are held at once. Weights may be larger.
_LARGEST = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelMap:
    """``t * scale + shift`` over a tensor t.

    Attributes
    ----------
    scale, shift : numpy.ndarray
        float64, of t's rank and one shape; each dimension is 1 or t's own.
    """

    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, scale: np.ndarray, shift: np.ndarray) -> ChannelMap:
        """Bring both to one shape, with dimension 1 wherever nothing varies along it."""
        _check_size(np.broadcast_shapes(scale.shape, shift.shape))
        scale, shift = np.broadcast_arrays(scale, shift)
        for axis in range(scale.ndim):
            first = (slice(None),) * axis + (slice(0, 1),)
            if (scale == scale[first]).all() and (shift == shift[first]).all():
                scale, shift = scale[first], shift[first]
        return cls(scale, shift)

    @property
    def rank(self) -> int:
        """The rank of the tensor."""
        return self.scale.ndim

    @property
    def varies(self) -> tuple[int, ...]:
        """The axes along which scale or shift differ."""
        return tuple(axis for axis, size in enumerate(self.scale.shape) if size > 1)

    def transposed(self, order: Sequence[int]) -> ChannelMap:
        """The same map over the transposed tensor."""
        return ChannelMap(self.scale.transpose(order), self.shift.transpose(order))

    def reshaped(self, keep: int, old: Sequence[int], new: Sequence[int]) -> ChannelMap:
        """The same map where the dimensions from `keep` on go from `old` to `new`."""
        lead = self.scale.shape[:keep]
        _check_size((*lead, *old))
        arrays = (
            np.broadcast_to(array, (*lead, *old)).reshape(*lead, *new)
            for array in (self.scale, self.shift)
        )
        return ChannelMap.of(*arrays)

    def along(self, axis: int, size: int, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift as vectors over one axis; refused when they vary along another."""
        if not -self.rank <= axis < self.rank:
            dimensions = "1 dimension" if self.rank == 1 else f"{self.rank} dimensions"
            raise Refusal(f"what {what} has {dimensions}, so no axis {axis}")
        axis = axis % self.rank
        others = [a for a in self.varies if a != axis]
        if others:
            raise Refusal(f"its channels lie along axis {others[0]} of what {what}, not {axis}")
        if self.scale.shape[axis] not in (1, size):
            raise Refusal(
                f"it has {self.scale.shape[axis]} channels along axis {axis} of what {what}, "
                f"where {size} are expected"
            )
        scale, shift = self.scale.reshape(-1), self.shift.reshape(-1)
        return np.broadcast_to(scale, (size,)), np.broadcast_to(shift, (size,))


@dataclasses.dataclass(frozen=True, eq=False)
class Norm:
    """``(x - center) * scale + bias`` per channel, float64 arrays of shape (C,)."""

    center: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    @property
    def shift(self) -> np.ndarray:
        """The constant term of ``x * scale + shift``."""
        return np.asarray(self.bias - self.center * self.scale)

    def over(self, rank: int) -> ChannelMap:
        """The map over a tensor of some rank with its channels on axis 1."""
        shape = (1, -1, *[1] * (rank - 2))
        return ChannelMap.of(self.scale.reshape(shape), self.shift.reshape(shape))

    def then(self, scale: np.ndarray, shift: np.ndarray) -> Norm:
        """This, and after it ``y * scale + shift``."""
        return Norm(self.center, self.scale * scale, self.bias * scale + shift)

    def behind(self, scale: np.ndarray, shift: np.ndarray) -> Norm:
        """``x * scale + shift``, and after it this."""
        # (x * s + t - center) * a + b == (x - (center - t) / s) * (a * s) + b
        flat = scale == 0
        center = np.where(flat, 0.0, (self.center - shift) / np.where(flat, 1.0, scale))
        bias = np.where(flat, self.bias + (shift - self.center) * self.scale, self.bias)
        return Norm(center, self.scale * scale, bias)


def _check_size(shape: Sequence[int]) -> None:
    if math.prod(shape) > _LARGEST:
        raise Refusal(
            f"its scale and shift would have to be held as arrays of shape {list(shape)}, of more "
            f"than {_LARGEST} values"
        )
