"""Tensors between two stages: in memory up to a limit, in files beyond it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from ...whole_file import WriteError, whole_file
from .checkpoint import CheckpointError

__all__ = ["KeptTensors", "ScratchTensors"]

_SMALL = 2**16
"""Bytes up to which a file is read rather than mapped."""

_MARKER = "cbn-tensors"
"""The file that tells a folder of tensors from any other."""

_OWN = re.compile(r"\d+-[0-9a-f]{32}(\.partial)?\.npy")

_CHECKSUM = 8
"""Bytes behind the array in a kept file: the crc32 of its values in hexadecimal."""


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
        """Keep the tensors of one batch; they are not copied.

        Raises
        ------
        OSError
            When a file cannot be written.
        """
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
        try:
            _write(path, array)
        except OSError as error:
            raise _advised(error, path, "give another scratch folder or more memory") from error
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
        Made when it is not there. One that holds files has to be of an earlier run, which a marker
        file tells.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._claimed = False

    def put(self, batch: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Write the tensors of one batch; each file is there whole or not at all.

        Raises
        ------
        CheckpointError
            When the folder is a file, or holds files and is of no earlier run.
        OSError
            When a file cannot be written.
        """
        for name, array in tensors.items():
            path = self._path(batch, name)
            try:
                self._claim()
                with whole_file(path, partial=path.with_suffix(".partial.npy")) as written:
                    _write(written, array)
                    with written.open("ab") as file:
                        file.write(_checksum(_storable(array)))
            except OSError as error:
                raise _advised(error, path, "make room, or keep the checkpoint elsewhere") from (
                    error
                )

    def get(self, batch: int, name: str) -> np.ndarray:
        """Map a tensor from its file.

        Raises
        ------
        CheckpointError
            When it is not there, or is not what was written.
        """
        path = self._path(batch, name)
        try:
            array = _map(path)
            with path.open("rb") as file:
                file.seek(-_CHECKSUM, os.SEEK_END)
                whole = file.read() == _checksum(array)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.folder} lacks {path.name}, which its checkpoint needs to go on; delete "
                "both to start anew"
            ) from error
        except (EOFError, ValueError, OSError) as error:
            raise self._damaged(path) from error
        if not whole:
            raise self._damaged(path)
        return _as_given(array)

    def free(self, batch: int, name: str) -> None:
        """Delete a tensor, if it is there."""
        self._path(batch, name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all that was kept, and the folder when nothing else is in it."""
        with contextlib.suppress(OSError):
            if (self.folder / _MARKER).exists():
                for path in list(self.folder.iterdir()):
                    if _OWN.fullmatch(path.name):
                        path.unlink()
                (self.folder / _MARKER).unlink()
                self.folder.rmdir()

    def _claim(self) -> None:
        """Make the folder, or see that it is this checkpoint's."""
        if self._claimed:
            return
        marker = self.folder / _MARKER
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: a file, where the checkpoint needs a folder")
        self.folder.mkdir(exist_ok=True)
        if not marker.exists():
            if any(self.folder.iterdir()):
                raise CheckpointError(
                    f"{self.folder}: holds files of something else, where the checkpoint needs a "
                    "folder for itself; give the checkpoint another name"
                )
            marker.write_text("Tensors of the cbn checkpoint beside this folder.\n", "utf-8")
        self._claimed = True

    def _damaged(self, path: Path) -> CheckpointError:
        return CheckpointError(
            f"{path} is damaged, and its checkpoint needs it to go on; delete both to start anew"
        )

    def _path(self, batch: int, name: str) -> Path:
        # Names of values are any text.
        return self.folder / f"{batch}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"


def _write(path: Path, array: np.ndarray) -> None:
    np.save(path, _storable(array), allow_pickle=False)


def _read(path: Path) -> np.ndarray:
    return _as_given(_map(path))


def _map(path: Path) -> np.ndarray:
    return np.asanyarray(np.load(path, mmap_mode="r" if path.stat().st_size > _SMALL else None))


def _storable(array: np.ndarray) -> np.ndarray:
    """Strings, which onnxruntime gives as objects, as NumPy's own."""
    return array.astype(str) if array.dtype == object else array


def _as_given(array: np.ndarray) -> np.ndarray:
    return array.astype(object) if array.dtype.kind == "U" else array


def _checksum(array: np.ndarray) -> bytes:
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"{zlib.crc32(values.data):08x}".encode()


def _advised(error: OSError, path: Path, advice: str) -> WriteError:
    reason = error.reason if isinstance(error, WriteError) else error.strerror or str(error)
    return WriteError(path, f"{reason}; {advice}", error.errno)
