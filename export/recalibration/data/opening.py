"""Find out what data are, and make a source of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data import LARGEST_BATCH, DataError, as_array, only
from ...inputs import ModelInput
from .array_files import Arrays, NpyFile, NpzFile, Tensors
from .images import EXTENSIONS, ImageOptions, Images
from .labels import LabelReader, read_labels
from .runs import spread
from .sampled import SampledSource
from .streams import Spool, StreamSource
from .tables import Joined, Table, content_mark

__all__ = ["Opener"]

_ACCEPTED = (
    "expected .npy, .npz, .pb, script.py:function, or a folder of .npy and .npz files, of images "
    "or of ONNX test data"
)


@dataclasses.dataclass(frozen=True)
class Opener:
    """What ``open_source`` was asked for, whatever the data are."""

    inputs: tuple[ModelInput, ...]
    batch_size: int | None
    images: ImageOptions | None
    limit: int | None
    labels: Any

    def open(self, data: Any) -> SampledSource | StreamSource:
        """Open anything that is accepted."""
        if isinstance(data, str | os.PathLike):
            return self._path(os.fspath(data))
        if self.images is not None:
            raise DataError(f"images are options for a folder, got {type(data).__name__}")
        if isinstance(data, Mapping):
            arrays = {str(name): _sliceable(name, array) for name, array in data.items()}
            return self._tables([Arrays(arrays, self.inputs, "the data")])
        if hasattr(data, "shape") and hasattr(data, "dtype"):
            found = only(_sliceable("data", data), self.inputs)
            return self._tables([Arrays(found, self.inputs, "the data")])
        if callable(data) and not isinstance(data, Iterable):
            return self._function(data, "the data", getattr(data, "__qualname__", ""))
        if isinstance(data, Iterator):
            spool = Spool(data, self.inputs, "the data", self.limit)
            return self._stream(
                spool,
                mark=spool.mark,
                samples=spool.samples,
                batches=spool.batches,
                notes=spool.notes,
            )
        if isinstance(data, Iterable):
            batches = operator.length_hint(data, -1)
            return self._stream(lambda: iter(data), batches=None if batches < 0 else batches)
        raise DataError(
            "expected data as a path, an array, a mapping of arrays, an iterable of batches or a "
            f"function that gives one of these, got {type(data).__name__}"
        )

    def _path(self, text: str) -> SampledSource | StreamSource:
        script, _, function = text.rpartition(":")
        if script.lower().endswith(".py"):
            path = Path(script)
            made = _load_function(path, function)
            return self._function(made, text, f"{content_mark(_bytes(path))} {function}")
        path = Path(text)
        if not path.exists():
            raise DataError(f"{path}: no such file")
        if path.is_dir():
            tables = self._folder(path)
        else:
            table = self._file(path)
            if table is None:
                raise DataError(f"{path}: {_ACCEPTED}, got {path.suffix or 'no extension'}")
            tables = [table]
        if self.images is not None and not isinstance(tables[0], Images):
            raise DataError(f"{self.images.origin}: options for images, and {path} holds none")
        return self._tables(tables)

    def _file(self, path: Path) -> Table | None:
        match path.suffix.lower():
            case ".npy":
                return NpyFile(path, self.inputs)
            case ".npz":
                return NpzFile(path, self.inputs)
            case ".pb":
                return Tensors([path], self.inputs, str(path))
        return None

    def _folder(self, folder: Path) -> list[Table]:
        inside = sorted(folder.iterdir(), key=_in_order)
        sets = [folder, *(path for path in inside if path.is_dir())]
        sets = [path for path in sets if (path / "input_0.pb").exists()]
        if sets:
            return [self._test_data(path) for path in sets]
        arrays = [path for path in inside if path.suffix.lower() in (".npy", ".npz")]
        arrays = [path for path in arrays if not self._is_labels(path)]
        if arrays and self.images is None:
            return [table for table in map(self._file, arrays) if table is not None]
        pattern = "*" if self.images is not None and not self.images.recursive else "**/*"
        if any(path.suffix.lower() in EXTENSIONS for path in folder.glob(pattern)):
            return [Images(folder, self.inputs, self.images)]
        found = ", ".join(sorted({path.suffix or path.name for path in inside})[:8]) or "nothing"
        raise DataError(f"{folder}: {_ACCEPTED}; the folder holds {found}")

    def _test_data(self, folder: Path) -> Table:
        paths = [folder / f"input_{index}.pb" for index in range(len(self.inputs))]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise DataError(
                f"{folder}: no {missing[0]}, and the model has {len(self.inputs)} inputs"
            )
        return Tensors(paths, self.inputs, str(folder))

    def _is_labels(self, path: Path) -> bool:
        if not isinstance(self.labels, str | os.PathLike):
            return False
        labels = Path(os.fspath(self.labels))
        return labels.exists() and labels.samefile(path)

    def _function(
        self, function: Callable[[], Any], origin: str, mark: str
    ) -> SampledSource | StreamSource:
        made = function()
        if not isinstance(made, Iterator):
            return self.open(made)
        return self._stream(lambda: iter(function()), origin=origin, mark=mark)

    def _tables(self, tables: list[Table]) -> SampledSource | StreamSource:
        size, fixed = self._size()
        table = tables[0] if len(tables) == 1 else Joined(tables)
        if any(table.samples is None for table in tables):
            return self._stream(
                lambda: (_whole(table) for table in tables),
                mark="\n".join(table.fingerprint() for table in tables),
                samples=len(tables),
                batches=len(tables),
                notes=table.notes,
            )
        samples = table.samples or 0
        labels = self._labels(samples, table.names)
        runs = [(0, samples)]
        if self.limit is not None and self.limit < samples:
            runs = spread(samples, self.limit)
            labels = None if labels is None else labels.select(runs)
        return SampledSource(
            self.inputs,
            table,
            runs,
            size or LARGEST_BATCH,
            fixed=fixed,
            labels=labels,
            notes=table.notes,
        )

    def _stream(
        self,
        open: Callable[[], Iterator[Any]],
        *,
        origin: str = "the data",
        mark: str = "",
        samples: int | None = None,
        batches: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> StreamSource:
        size, fixed = self._size()
        labels = self._labels(None if self.limit else samples, None)
        runs = None
        if self.limit is not None and (samples is None or self.limit < samples):
            runs, samples, batches = [(0, self.limit)], None, None
        if self.limit is not None and labels is not None:
            labels = labels.select([(0, min(self.limit, len(labels)))])
        return StreamSource(
            self.inputs,
            open,
            origin=origin,
            mark=mark,
            size=size,
            fixed=fixed,
            runs=runs,
            labels=labels,
            samples=None if fixed else samples,
            batches=None if size else batches,
            notes=notes,
        )

    def _labels(self, samples: int | None, names: tuple[str, ...] | None) -> LabelReader | None:
        return None if self.labels is None else read_labels(self.labels, samples, names)

    def _size(self) -> tuple[int | None, bool]:
        """The size that batches are cut to, and whether the model takes no other."""
        first = {d.shape[0] for d in self.inputs if d.shape and isinstance(d.shape[0], int)}
        if len(first) != 1:
            return self.batch_size, False
        fixed = first.pop()
        if self.batch_size not in (None, fixed):
            raise DataError(
                f"the model takes batches of {fixed} samples, got batch_size {self.batch_size}"
            )
        return fixed, True


def _sliceable(name: Any, array: Any) -> Any:
    """Keep what can be sliced without being read; make an array of the rest."""
    lazy = isinstance(getattr(array, "dtype", None), np.dtype) and hasattr(array, "__getitem__")
    return array if lazy and hasattr(array, "shape") else as_array(name, array)


def _whole(table: Table) -> Any:
    try:
        return table.read(0, table.samples or 0)
    finally:
        table.close()


def _in_order(path: Path) -> tuple[str, int, str]:
    """By name, numbers at the end by their value: test_data_set_10 after test_data_set_9."""
    stem = path.stem.rstrip("0123456789")
    number = path.stem[len(stem) :]
    return stem, int(number or -1), path.name


def _bytes(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8)


def _load_function(path: Path, name: str) -> Callable[[], Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"cbn_data_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a script may raise anything
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"{path} has no function {name!r}")

    def called() -> Any:
        try:
            return function()
        except Exception as error:  # a script may raise anything
            raise DataError(f"{path}:{name}: {type(error).__name__}: {error}") from error

    return called
