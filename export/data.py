"""Read input data from files or arrays, check that it fits a model, cut it into batches."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx

from .files import ModelLike
from .inputs import (
    RANDOM_BATCH,
    RANDOM_SIZE,
    DataError,
    Feeds,
    ModelInput,
    model_inputs,
    random_inputs,
)

__all__ = ["DataError", "DataLike", "batches", "load_data", "load_or_random"]

DataLike = str | os.PathLike[str] | Mapping[str, Any] | np.ndarray | Sequence[Any]

LARGEST_BATCH = 32


class Shaped(Protocol):
    """What is known of an array before it is read."""

    @property
    def dtype(self) -> Any:
        """Its NumPy type."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...


ShapedArray = TypeVar("ShapedArray", bound=Shaped)

_ACCEPTED = "expected .npy, .npz, .pb or a folder with input_0.pb"


def unreadable(path: Path, error: Exception) -> DataError:
    """Say that a file cannot be read, and why, without NumPy's advice to load it unsafely."""
    reason = str(error)
    if "Object arrays" in reason or "Python objects" in reason:
        reason = "it holds an array of Python objects; expected numbers"
    elif "pickle" in reason:
        reason = "it is no NumPy file, or a damaged one"
    return DataError(f"{path}: cannot be read: {reason}")


def load_data(data: DataLike, inputs: Sequence[ModelInput]) -> Feeds:
    """Read input data and check it against the inputs of a model, before anything is run.

    Parameters
    ----------
    data : str, os.PathLike, mapping or array
        - ``.npy``: the input of a model that has one.
        - ``.npz``: an array for each input, by its name. Arrays that are no input, such as labels,
          are ignored. A model with one input also takes the only array of the file that fits
          it, whatever its name; reports say so.
        - ``.pb``: an ONNX TensorProto, the input of a model that has one.
        - a folder: ONNX test data, ``input_0.pb``, ``input_1.pb``, ... in the order of the inputs.
        - a mapping of names to arrays (like ``.npz``), or an array (like ``.npy``).

        Files with pickled objects are refused. ``.npy`` files are memory-mapped.
    inputs : sequence of ModelInput
        From ``model_inputs``.

    Returns
    -------
    dict of str to numpy.ndarray
        One array for each input. Types must be the declared ones, nothing is converted. Along the
        first axis there may be more samples than the model takes at once: see `batches`.

    Raises
    ------
    DataError
        When a file cannot be read, an input is missing, or a type, rank or dimension does not fit.
    """
    return _load(data, inputs)[0]


def load_or_random(
    model: ModelLike,
    data: DataLike | None = None,
    seed: int = 0,
    *,
    batch: int = RANDOM_BATCH,
    size: int = RANDOM_SIZE,
) -> tuple[Feeds, str]:
    """Read input data for a model, or make some up, and say in words what they are.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
    data : optional
        What `load_data` takes; None for seeded random inputs.
    seed, batch, size
        As for ``random_inputs``.

    Returns
    -------
    feeds : dict of str to numpy.ndarray
    words : str
        Such as ``random inputs (seed 0)`` or the name of the file, with a remark where an array
        went to an input of another name.

    Raises
    ------
    DataError
        When the data cannot be read or does not fit.
    ModelError
        When no random inputs can be made.
    """
    if data is None:
        return random_inputs(model, seed, batch=batch, size=size), f"random inputs (seed {seed})"
    feeds, remark = _load(data, model_inputs(model))
    words = os.fspath(data) if isinstance(data, str | os.PathLike) else "the given data"
    return feeds, f"{words} ({remark})" if remark else words


def _load(data: DataLike, inputs: Sequence[ModelInput]) -> tuple[Feeds, str]:
    """Read data, with a remark on the names of its arrays."""
    if isinstance(data, str | os.PathLike):
        found, origin = _read(Path(data), inputs), str(data)
    elif isinstance(data, Mapping):
        found, origin = {str(key): as_array(key, item) for key, item in data.items()}, "the data"
    else:
        found, origin = only(as_array("data", data), inputs), "the data"
    feeds = choose(found, inputs, origin)
    for declared in inputs:
        check_input(feeds[declared.name], declared)
    cut_size(feeds, inputs)
    return feeds, renamed(found, feeds)


def batches(
    feeds: Feeds, inputs: Sequence[ModelInput], largest: int = LARGEST_BATCH
) -> Iterator[Feeds]:
    """Cut data along the first axis into what a model takes at once.

    A model with a fixed batch size gets batches of that size, of which the last may overlap the
    one before it. One with a symbolic batch size gets equal parts of at most `largest` samples.
    Data whose inputs do not share a first axis goes in whole.
    """
    samples, size = cut_size(feeds, inputs)
    if size is None:
        parts = -(-samples // largest)
        edges = [samples * part // parts for part in range(parts + 1)]
        bounds = list(itertools.pairwise(edges))
    else:
        bounds = [
            (min(start, samples - size), min(start, samples - size) + size)
            for start in range(0, samples, size)
        ]
    for start, stop in bounds:
        if stop - start == samples:
            yield feeds
        else:
            yield {name: array[start:stop] for name, array in feeds.items()}


def cut_size(feeds: Mapping[str, Shaped], inputs: Sequence[ModelInput]) -> tuple[int, int | None]:
    """Return the number of samples and how many go in at once (None: any number)."""
    lengths = {array.shape[0] if array.shape else 1 for array in feeds.values()}
    first = {
        declared.shape[0] if declared.shape else 1
        for declared in inputs
        if declared.shape is not None
    }
    fixed = {dim for dim in first if isinstance(dim, int)}
    whole = all(
        not declared.shape
        or not isinstance(declared.shape[0], int)
        or declared.shape[0] == feeds[declared.name].shape[0]
        for declared in inputs
    )
    samples = max(lengths, default=1)
    if whole:
        alike = len(lengths) == 1 and not fixed and all(declared.shape for declared in inputs)
        return samples, None if alike else samples
    if len(lengths) == 1 and len(fixed) == 1 and len(fixed) == len(first) and min(fixed) <= samples:
        return samples, min(fixed)
    wrong = next(
        d
        for d in inputs
        if d.shape and isinstance(d.shape[0], int) and d.shape[0] != feeds[d.name].shape[0]
    )
    raise DataError(
        f"input {wrong.name!r}: the model takes {wrong.shape[0] if wrong.shape else 1} along the "
        f"first axis, got {feeds[wrong.name].shape[0]}; more can be given when all inputs have the "
        "same number of samples"
    )


def _read(path: Path, inputs: Sequence[ModelInput]) -> Feeds:
    if path.is_dir():
        return _read_folder(path, inputs)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        match path.suffix.lower():
            case ".npy":
                return only(np.load(path, mmap_mode="r", allow_pickle=False), inputs)
            case ".npz":
                # Opened here: NumPy leaves a file that is no archive open.
                with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                    names = [declared.name for declared in inputs]
                    chosen = names if set(names) <= set(archive.files) else archive.files
                    return {name: archive[name] for name in chosen}
            case ".pb":
                return only(read_tensor(path), inputs)
    except DataError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds on broken files
        raise unreadable(path, error) from error
    raise DataError(f"{path}: {_ACCEPTED}, got {path.suffix or 'no extension'}")


def _read_folder(path: Path, inputs: Sequence[ModelInput]) -> Feeds:
    files = [path / f"input_{index}.pb" for index in range(len(inputs))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise DataError(
            f"{path}: no {missing[0]}; a folder holds input_0.pb and so on, one for each of the "
            f"model's {len(inputs)} inputs"
        )
    return {d.name: read_tensor(file) for d, file in zip(inputs, files, strict=True)}


def read_tensor(path: Path) -> np.ndarray:
    """Read an ONNX TensorProto."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # protobuf's error class differs between its implementations
        raise DataError(f"{path}: not an ONNX TensorProto, or a truncated one ({error})") from error


def as_array(name: Any, item: Any) -> np.ndarray:
    """Make an array of what was given for an input."""
    try:
        return np.asarray(item)
    except Exception as error:  # any object may be given, and raise anything
        raise DataError(f"input {name!r}: expected an array, got {type(item).__name__}") from error


def only(array: ShapedArray, inputs: Sequence[ModelInput]) -> dict[str, ShapedArray]:
    """Give an array without a name to the only input."""
    if len(inputs) != 1:
        names = ", ".join(repr(declared.name) for declared in inputs)
        raise DataError(
            f"got one array without a name, but the model has {len(inputs)} inputs: {names}; "
            "give a .npz or a mapping with these names"
        )
    return {inputs[0].name: array}


def choose(
    found: Mapping[str, ShapedArray], inputs: Sequence[ModelInput], origin: str
) -> dict[str, ShapedArray]:
    """Find the array of each input, by its name or as the only one that fits the only input."""
    missing = [declared for declared in inputs if declared.name not in found]
    if not missing:
        return {declared.name: found[declared.name] for declared in inputs}
    if len(inputs) == 1:
        fitting = [array for array in found.values() if _misfit(array, inputs[0]) is None]
        if len(fitting) == 1:
            return {inputs[0].name: fitting[0]}
    names = ", ".join(f"{name!r} ({array.dtype} {array.shape})" for name, array in found.items())
    wanted = f"{missing[0].name!r}, {missing[0]}"
    raise DataError(f"{origin} has no array for input {wanted}; it has {names or 'none'}")


def renamed(found: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Say which array `choose` took for an input of another name; empty where it took none."""
    for name, array in chosen.items():
        if name not in found:
            given = next(key for key, item in found.items() if item is array)
            return f"array {given!r} is taken for the input {name!r}, as the only one that fits"
    return ""


def check_input(array: Shaped, declared: ModelInput) -> None:
    """Refuse an array that is no data for an input, whatever its first axis."""
    misfit = _misfit(array, declared)
    if misfit is not None:
        raise DataError(
            f"input {declared.name!r}: expected {declared}, got {array.dtype} of shape "
            f"{array.shape}: {misfit}"
        )


def _misfit(array: Shaped, declared: ModelInput) -> str | None:
    """Say why an array is no data for an input, the first axis left out."""
    text = declared.dtype == object and array.dtype.kind in "OUT"
    if array.dtype != declared.dtype and not text:
        return f"the type differs (array.astype({str(declared.dtype)!r}) converts it)"
    if declared.shape is None:
        return None
    if len(array.shape) != len(declared.shape):
        return f"it has {len(array.shape)} dimensions in place of {len(declared.shape)}"
    if 0 in array.shape:
        return "it is empty"
    for axis, dim in enumerate(declared.shape):
        if axis and isinstance(dim, int) and array.shape[axis] != dim:
            return f"axis {axis} has {array.shape[axis]} in place of {dim}"
    return None
