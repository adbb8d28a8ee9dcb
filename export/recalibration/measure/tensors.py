"""Tensors between two stages: in memory up to a limit, in files beyond it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from .checkpoint import CheckpointError

__all__ = ["KeptTensors", "ScratchTensors"]

_SMALL = 2**16
"""Bytes up to which a file is read rather than mapped."""


class ScratchTensors:
    """Tensors that last as long as this object: a context manager, which removes its files.

    A tensor is named by the index of a batch and a value.

    Parameters
    ----------
    memory : int
        Bytes that stay in memory. What comes when they are used up goes into files.
    scratch : str or os.PathLike, optional
        An existing folder to make a temporary one in; the system's when None.
    """

    def __init__(self, memory: int, scratch: str | os.PathLike[str] | None = None) -> None:
        self._room = memory
        self._scratch = scratch
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._kept: dict[tuple[int, str], np.ndarray] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._count = 0

    def put(self, batch: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Keep the tensors of one batch; they are not copied."""
        for name, array in tensors.items():
            if array.nbytes <= self._room:
                self._kept[batch, name] = array
                self._room -= array.nbytes
            else:
                self._files[batch, name] = self._write(array)

    def get(self, batch: int, name: str) -> np.ndarray:
        """Give a tensor back, for reading."""
        if (batch, name) in self._kept:
            return self._kept[batch, name]
        return _read(self._files[batch, name])

    def free(self, batch: int, name: str) -> None:
        """Forget a tensor, if it is there."""
        array = self._kept.pop((batch, name), None)
        if array is not None:
            self._room += array.nbytes
        path = self._files.pop((batch, name), None)
        if path is not None:
            path.unlink()

    def _write(self, array: np.ndarray) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="cbn-", dir=self._scratch)
        self._count += 1
        path = Path(self._folder.name, f"{self._count}.npy")
        _write(path, array)
        return path

    def __enter__(self) -> ScratchTensors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kept.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()


class KeptTensors:
    """Tensors in a folder beside a checkpoint: they outlive the process, until `remove`.

    Parameters
    ----------
    folder : pathlib.Path
        Made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, batch: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Write the tensors of one batch; each file is there whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        for name, array in tensors.items():
            path = self._path(batch, name)
            partial = path.with_suffix(".partial.npy")
            _write(partial, array)
            os.replace(partial, path)

    def get(self, batch: int, name: str) -> np.ndarray:
        """Map a tensor from its file.

        Raises
        ------
        CheckpointError
            When it is not there.
        """
        try:
            return _read(self._path(batch, name))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.folder} lacks {Path(error.filename).name}, which its checkpoint needs to "
                "go on; delete both to start anew"
            ) from error

    def free(self, batch: int, name: str) -> None:
        """Delete a tensor, if it is there."""
        self._path(batch, name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all that was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, batch: int, name: str) -> Path:
        # Names of values are any text.
        return self.folder / f"{batch}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"


def _write(path: Path, array: np.ndarray) -> None:
    if array.dtype == object:  # strings, which onnxruntime gives as objects
        array = array.astype(str)
    np.save(path, array, allow_pickle=False)


def _read(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r" if path.stat().st_size > _SMALL else None)
    return array.astype(object) if array.dtype.kind == "U" else array
