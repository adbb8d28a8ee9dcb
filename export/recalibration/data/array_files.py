"""Tables in memory and in .npy, .npz and .pb files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from ...data import DataError, check_input, choose, cut_size, only, read_tensor, renamed, unreadable
from ...inputs import Feeds, ModelInput
from .tables import Rows, content_mark, file_mark, shared_axis

__all__ = ["Arrays", "NpyFile", "NpzFile", "Tensors"]

_FINGERPRINT_ROWS = 256
_FINGERPRINT_PIECE = 2**26
_PIECE = 2**20


class _Fitting:
    """One set of arrays that fits the model; what every table of a single origin is."""

    breaks: tuple[int, ...] = ()
    names: tuple[str, ...] | None = None

    def __init__(self, found: Mapping[str, Any], inputs: Sequence[ModelInput], origin: str) -> None:
        self.origin = origin
        self.arrays = choose(found, inputs, origin)
        remark = renamed(found, self.arrays)
        self.notes = (remark,) if remark else ()
        try:
            for declared in inputs:
                check_input(self.arrays[declared.name], declared)
            self.samples = shared_axis(self.arrays, inputs)
            if self.samples is None:
                cut_size(self.arrays, inputs)  # refuses what goes in neither whole nor in parts
        except DataError as error:
            raise DataError(f"{origin}: {error}") from None
        skip = 0 if self.samples is None else 1
        self.row: Rows = {
            name: (array.dtype, tuple(array.shape[skip:])) for name, array in self.arrays.items()
        }

    def read(self, start: int, stop: int) -> Feeds:
        return {
            name: np.array(array[start:stop] if self.samples is not None else array)
            for name, array in self.arrays.items()
        }

    def close(self) -> None:
        """Nothing is open."""


class Arrays(_Fitting):
    """Arrays in memory, or anything that has a dtype, a shape and slices, such as HDF5 datasets."""

    def fingerprint(self) -> str:
        """Tell the arrays by their content; where they are not in memory, by some of their rows."""
        parts = []
        for name, array in self.arrays.items():
            parts.append(f"{name} {array.dtype} {tuple(array.shape)}")
            if not array.shape:
                parts.append(content_mark(array))
                continue
            rows = array.shape[0]
            if isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
                step = max(1, _FINGERPRINT_PIECE * rows // max(1, array.nbytes))
                parts += [content_mark(array[row : row + step]) for row in range(0, rows, step)]
            else:
                step = max(1, rows // _FINGERPRINT_ROWS)
                parts += [content_mark(array[row]) for row in range(0, rows, step)]
        return "\n".join(parts)


class NpyFile(_Fitting):
    """A .npy file, mapped into memory while it is read."""

    def __init__(self, path: Path, inputs: Sequence[ModelInput]) -> None:
        self.path = path
        array = self._map()
        super().__init__(only(_Header(array.dtype, array.shape), inputs), inputs, str(path))
        self._name = inputs[0].name
        self._open: np.ndarray | None = None

    def read(self, start: int, stop: int) -> Feeds:
        """Read a run of samples."""
        if self._open is None:
            self._open = self._map()
        array = self._open[start:stop] if self.samples is not None else self._open
        return {self._name: np.array(array)}

    def close(self) -> None:
        """Unmap the file."""
        self._open = None

    def fingerprint(self) -> str:
        """Path, size and time of the file."""
        return file_mark(self.path)

    def _map(self) -> np.ndarray:
        try:
            return np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
        except Exception as error:  # NumPy raises many kinds on broken files
            raise unreadable(self.path, error) from error


class NpzFile(_Fitting):
    """A .npz file, of which runs of rows are unpacked as they are read, also compressed ones."""

    def __init__(self, path: Path, inputs: Sequence[ModelInput]) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, _Member] = {}
        headers = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".npy"):
                        with archive.open(name) as file:
                            headers[name.removesuffix(".npy")] = _read_header(file)
        except Exception as error:  # NumPy and zipfile raise many kinds on broken files
            raise unreadable(path, error) from error
        super().__init__(headers, inputs, str(path))
        self._keys = {
            name: next(key for key, header in headers.items() if header is chosen)
            for name, chosen in self.arrays.items()
        }

    def read(self, start: int, stop: int) -> Feeds:
        """Read a run of samples; going on where the last one ended costs no unpacking twice."""
        try:
            if self._archive is None:
                self._archive = zipfile.ZipFile(self.path)
            if not self._members:
                self._members = {
                    name: _Member(self._archive.open(f"{key}.npy"))
                    for name, key in self._keys.items()
                }
            if self.samples is None:
                return {name: member.read(None) for name, member in self._members.items()}
            return {name: member.read((start, stop)) for name, member in self._members.items()}
        except Exception as error:  # NumPy and zipfile raise many kinds on broken files
            raise unreadable(self.path, error) from error

    def close(self) -> None:
        """Close the archive."""
        for member in self._members.values():
            member.file.close()
        self._members = {}
        if self._archive is not None:
            self._archive.close()
            self._archive = None

    def fingerprint(self) -> str:
        """Path, size and time of the file."""
        return file_mark(self.path)


class Tensors(_Fitting):
    """ONNX test data: one .pb file for each input."""

    def __init__(self, paths: Sequence[Path], inputs: Sequence[ModelInput], origin: str) -> None:
        self.paths = paths
        self._inputs = inputs
        feeds = self._load()
        super().__init__(feeds, inputs, origin)
        self.arrays = {name: _Header(a.dtype, a.shape) for name, a in feeds.items()}
        self._open: Feeds | None = None

    def read(self, start: int, stop: int) -> Feeds:
        """Read a run of samples; the files are read whole."""
        if self._open is None:
            self._open = self._load()
        if self.samples is None:
            return self._open
        return {name: array[start:stop] for name, array in self._open.items()}

    def close(self) -> None:
        """Forget what was read."""
        self._open = None

    def fingerprint(self) -> str:
        """Path, size and time of each file."""
        return "\n".join(map(file_mark, self.paths))

    def _load(self) -> Feeds:
        return {
            declared.name: read_tensor(path)
            for declared, path in zip(self._inputs, self.paths, strict=True)
        }


class _Header(NamedTuple):
    """What a file says of an array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Member:
    """A member of an open archive, which is read row by row from where the last read ended."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.dtype, self.shape, self._fortran = _parse_header(file)
        if self.dtype.hasobject:
            raise ValueError("pickled objects are not read")
        self._start = file.tell()
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._whole: np.ndarray | None = None

    def read(self, run: tuple[int, int] | None) -> np.ndarray:
        """Read rows, or all of it."""
        if run is None or self._fortran:
            if self._whole is None:  # rows lie scattered in Fortran's order: it is read whole
                values = self._bytes(0, math.prod(self.shape) * self.dtype.itemsize)
                order: Literal["C", "F"] = "F" if self._fortran else "C"
                self._whole = values.view(self.dtype).reshape(self.shape, order=order)
            return self._whole if run is None else np.ascontiguousarray(self._whole[slice(*run)])
        start, stop = run
        values = self._bytes(start * self._row, (stop - start) * self._row)
        return values.view(self.dtype).reshape(stop - start, *self.shape[1:])

    def _bytes(self, start: int, size: int) -> np.ndarray:
        if self.file.tell() != self._start + start:
            self.file.seek(self._start + start)
        content = bytearray(size)
        filled = 0
        while filled < size:
            piece = self.file.read(min(size - filled, _PIECE))
            if not piece:
                raise ValueError(f"it ends {size - filled} bytes too early")
            content[filled : filled + len(piece)] = piece
            filled += len(piece)
        return np.frombuffer(content, np.uint8)


def _read_header(file: IO[bytes]) -> _Header:
    dtype, shape, _ = _parse_header(file)
    return _Header(dtype, shape)


def _parse_header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format is for structured arrays")
    return dtype, shape, fortran
