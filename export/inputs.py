"""What a model takes as input, and random inputs that fit it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .files import ModelError, ModelLike, load
from .results import counted

__all__ = ["DataError", "Feeds", "ModelInput", "model_inputs", "not_finite", "random_inputs"]


class DataError(ValueError):
    """Input data cannot be read or does not fit the model; the message names the input."""


Feeds = dict[str, np.ndarray]
"""Arrays by the names of the inputs they go to."""

RANDOM_BATCH = 4
RANDOM_SIZE = 32
"""What a symbolic dimension becomes: 4 along the first axis, so that a batch has statistics, and 32
elsewhere, which networks that halve their input five times still take."""

_LARGEST_RANDOM = 2**28

_COUNTED_AT_ONCE = 2**22  # elements, so that a file that is memory-mapped stays one


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """One input that a caller of the model has to give.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    shape : tuple of int, str or None, or None
        Fixed dimensions as ints, symbolic ones by name or None; None when no rank is declared.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        """Say what fits, in words."""
        if self.shape is None:
            return f"{self.dtype} of any shape"
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype} of shape ({dims})"


def model_inputs(model: ModelLike) -> tuple[ModelInput, ...]:
    """List what a caller has to feed: the graph's inputs that have no initializer.

    Raises
    ------
    ModelError
        When an input is no tensor of a type that NumPy has, or states no type.
    """
    graph = load(model).graph
    return tuple(_declared(value) for value in graph.inputs if value.name not in graph.initializers)


def random_inputs(
    model: ModelLike, seed: int = 0, *, batch: int = RANDOM_BATCH, size: int = RANDOM_SIZE
) -> Feeds:
    """Make seeded random inputs that fit the shapes and types that a model declares.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
    seed : int, default: 0
    batch : int, default: 4
        Size of a symbolic first dimension.
    size : int, default: 32
        Size of any other symbolic dimension. Those of one name have one size, that of the first.

    Returns
    -------
    dict of str to numpy.ndarray
        Floats are standard normal; integers are 0 or 1, which any table of indices has;
        booleans are even odds.

    Raises
    ------
    ModelError
        When an input states no shape, is absurdly large, or has a type that is none of these.
    """
    generator = np.random.default_rng(seed)
    feeds: Feeds = {}
    named: dict[str, int] = {}
    for declared in model_inputs(model):
        if declared.shape is None:
            raise ModelError(f"input {declared.name!r} declares no shape: give data for it")
        shape = []
        for axis, dim in enumerate(declared.shape):
            free = size if axis else batch
            if isinstance(dim, str):
                free = named.setdefault(dim, free)
            shape.append(dim if isinstance(dim, int) else free)
        if math.prod(shape) > _LARGEST_RANDOM:
            raise ModelError(
                f"input {declared.name!r} is {declared}: too large to fill with random numbers"
            )
        kind = declared.dtype.kind
        if kind in "iub":
            feeds[declared.name] = generator.integers(0, 2, shape).astype(declared.dtype)
        elif kind == "f" or declared.dtype == ml_dtypes.bfloat16:  # whose kind is "V"
            feeds[declared.name] = generator.standard_normal(shape).astype(declared.dtype)
        else:
            raise ModelError(
                f"input {declared.name!r} is {declared}: random inputs are floats, integers or "
                "booleans, so give data for it"
            )
    return feeds


def _declared(value: ir.Value) -> ModelInput:
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        stated = "no type" if value.type is None else f"the type {value.type}"
        raise ModelError(f"input {value.name!r} has {stated}, expected a tensor")
    try:
        dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else value.dtype.numpy()
    except (TypeError, ValueError) as error:
        raise ModelError(f"input {value.name!r} has the type {value.dtype}: {error}") from error
    shape = None
    if value.shape is not None:
        # Old exporters write -1 or 0 where any size goes.
        shape = tuple(
            (dim if dim > 0 else None) if isinstance(dim, int) else dim.value for dim in value.shape
        )
    return ModelInput(str(value.name), np.dtype(dtype), shape)


def not_finite(feeds: Feeds) -> tuple[str, ...]:
    """Say of each input that holds NaN or infinities how many of its values are such.

    Raises
    ------
    DataError
        Where no input holds any other value: NaN equals NaN, and nothing would be checked.
    """
    found, finite = [], not feeds
    for name, array in feeds.items():
        if array.dtype.kind not in "fcV":  # V: bfloat16 and its like
            finite = True
            continue
        rows = array if array.ndim else array[None]
        step = max(1, _COUNTED_AT_ONCE * len(rows) // max(1, rows.size))
        parts = (rows[start : start + step] for start in range(0, len(rows), step))
        number = sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts)
        finite = finite or number < rows.size or not rows.size
        if number:
            verb = "is" if number == 1 else "are"
            found.append(
                f"{number} of {counted(rows.size, 'value')} of the input {name!r} {verb} "
                "not finite (NaN or infinity)"
            )
    if not finite:
        raise DataError(f"{'; '.join(found)}: there is nothing to compare")
    return tuple(found)
