"""Read one batch norm layer's arrays from a file of weights."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["read_layer"]

# torch's names in a state dict, in its order.
LAYER_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

# The names in a file, and how to get one of them: a whole network is not read for one layer.
_Source = tuple[list[str], Callable[[str], np.ndarray]]


def read_layer(path: Path, prefix: str | None = None) -> dict[str, np.ndarray]:
    """Read a batch norm layer's state from ``.npz`` or ``.safetensors``.

    Parameters
    ----------
    path
        A state dict with torch's keys: weight, bias, running_mean, running_var and
        num_batches_tracked, each behind the layer's name where the file holds a whole network.
    prefix
        The layer's name, with or without the dot behind it. None takes the only layer there is.

    Returns
    -------
    dict
        The layer's arrays under torch's keys, without the prefix.

    Raises
    ------
    ValueError
        If the file is not one of the two kinds or is damaged, if no layer or several layers
        could be meant, or if the layer has a key that batch norm has not.
    OSError
        If the file cannot be read.
    """
    with _open(path) as (names, get):
        start = _start_of_layer(path, names, prefix)
        inside = [name.removeprefix(start) for name in names if name.startswith(start)]
        keys = [name for name in inside if "." not in name]
        unknown = sorted(set(keys) - set(LAYER_KEYS))
        if unknown:
            raise ValueError(
                f"{path}: {start or 'the layer'} holds {', '.join(unknown)}, which no batch norm "
                f"layer has; expected {', '.join(LAYER_KEYS)}"
            )
        return {key: get(start + key) for key in keys}


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Source]:
    """Open a file of named arrays, by its suffix."""
    opener = {".npz": _open_npz, ".safetensors": _open_safetensors}.get(path.suffix)
    if opener is None:
        raise ValueError(f"{path}: expected a .npz or .safetensors file of weights")
    with path.open("rb") as file, opener(path, file) as source:
        yield source


@contextlib.contextmanager
def _open_npz(path: Path, file: BinaryIO) -> Iterator[_Source]:
    try:
        archive = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a .npz file, or a damaged one") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path}: one array without a name; expected a .npz of named arrays")

    def get(name: str) -> np.ndarray:
        try:
            return np.asarray(archive[name])
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: cannot read {name}: {error}") from error

    with archive:
        yield archive.files, get


@contextlib.contextmanager
def _open_safetensors(path: Path, file: BinaryIO) -> Iterator[_Source]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as archive:  # takes a path alone

            def get(name: str) -> np.ndarray:
                try:
                    return np.asarray(archive.get_tensor(name))
                except (AttributeError, TypeError) as error:
                    kind = archive.get_slice(name).get_dtype()
                    raise ValueError(f"{path}: {name} is of type {kind}, not NumPy's") from error

            yield list(archive.keys()), get
    except SafetensorError as error:
        raise ValueError(f"{path}: not a .safetensors file, or a damaged one: {error}") from error


def _start_of_layer(path: Path, names: list[str], prefix: str | None) -> str:
    """Return what the names of the chosen layer's arrays start with."""
    layers = sorted(
        name.removesuffix("running_mean") for name in names if _last(name) == "running_mean"
    )
    if prefix is not None:
        for start in (prefix, f"{prefix}."):
            if any(start + key in names for key in LAYER_KEYS):
                return start
        raise ValueError(f"{path}: no batch norm layer at {prefix!r}; {_held(names, layers)}")
    if len(layers) == 1:
        return layers[0]
    if layers:
        raise ValueError(
            f"{path}: {len(layers)} batch norm layers; choose one with --prefix: "
            f"{', '.join(layer or repr(layer) for layer in layers)}"
        )
    if names and set(names) <= {"weight", "bias"}:
        return ""  # a layer without running statistics
    raise ValueError(f"{path}: no batch norm layer; {_held(names, layers)}")


def _held(names: list[str], layers: list[str]) -> str:
    """Say what a file holds, for the end of an error."""
    if layers:
        return f"the file has {', '.join(layer or repr(layer) for layer in layers)}"
    if not names:
        return "the file is empty"
    shown = ", ".join(sorted(names)[:8])
    return f"no running_mean among its arrays: {shown}{', and more' if len(names) > 8 else ''}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
