"""A batch norm of known statistics between two stages, computed by cbn and not by onnxruntime."""

from __future__ import annotations

import dataclasses

import numpy as np

import cbn

__all__ = ["Normalized"]


@dataclasses.dataclass(frozen=True, eq=False)
class Normalized:
    """One node, or a node and the Relu that alone reads it.

    Attributes
    ----------
    target : str
        Whose statistics it normalizes with.
    x, y : str
        The values that it reads and makes.
    weight, bias : numpy.ndarray of float64, shape (C,)
    eps : float
    relu : bool
        Whether a Relu follows, whose output `y` is.
    in_place : bool
        Whether nothing else reads x from then on.
    """

    target: str
    x: str
    y: str
    weight: np.ndarray
    bias: np.ndarray
    eps: float
    relu: bool
    in_place: bool

    def map(
        self, mean: np.ndarray, var: np.ndarray, dtype: np.dtype, num_threads: int | None
    ) -> cbn.ScaleShift:
        """Return it as a map of arrays of a dtype, for these statistics.

        Raises
        ------
        ValueError
            Where var + eps is 0.
        """
        layer = cbn.BatchNorm1d(
            len(mean), eps=self.eps, dtype="float64", num_threads=num_threads
        ).eval()
        layer.load_state_dict(
            {
                "weight": self.weight,
                "bias": self.bias,
                "running_mean": mean.astype(np.float64),
                "running_var": var.astype(np.float64),
                "num_batches_tracked": np.array(0),
            }
        )
        return layer.fuse("relu" if self.relu else None, dtype=dtype)
