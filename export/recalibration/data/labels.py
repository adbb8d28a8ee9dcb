"""The class of each sample, for a metric: from a file, an array or the names of folders."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...data import DataError, unreadable
from .runs import Run

__all__ = ["FOLDERS", "LabelReader", "read_labels"]

FOLDERS = "folders"
"""In place of a file of labels: images are labelled by the folder that they lie in."""

_KEYS = ("labels", "label")
_ACCEPTED = (
    "expected .npy, .npz (an array 'labels' or 'label', or FILE.npz:NAME), .csv or .txt with a "
    f"whole number a line or rows of file name and label, or {FOLDERS!r} for images"
)


class LabelReader:
    """Whole numbers, one for each sample of a source, in its order.

    Parameters
    ----------
    values : ndarray of int64, shape (samples,)
    classes : tuple of str, optional
        What the numbers 0, 1, ... stand for, where they come from names of folders.
    origin : str, default: "labels"
        Names them in errors: their file.
    """

    def __init__(
        self,
        values: np.ndarray,
        classes: tuple[str, ...] | None = None,
        origin: str = "labels",
    ) -> None:
        self.values = values
        self.classes = classes
        self.origin = origin

    def __len__(self) -> int:
        return len(self.values)

    def take(self, first: int, samples: int) -> np.ndarray:
        """Return the labels of a batch of samples, of which `first` is the first. Shape (samples,).

        Raises
        ------
        DataError
            When there are not as many.
        """
        self._require(first + samples)
        return self.values[first : first + samples]

    def select(self, runs: Sequence[Run]) -> LabelReader:
        """Return the labels of some of the samples."""
        self._require(runs[-1][1] if runs else 0)
        chosen = [self.values[:0], *(self.values[slice(*run)] for run in runs)]
        return LabelReader(np.concatenate(chosen), self.classes, self.origin)

    def require_samples(self, samples: int) -> None:
        """Refuse another number of labels than of samples.

        Raises
        ------
        DataError
            Which names the file.
        """
        if len(self) != samples:
            raise DataError(f"{self.origin}: got {len(self)} labels for {samples} samples")

    def _require(self, samples: int) -> None:
        if samples > len(self):
            raise DataError(f"{self.origin}: got {len(self)} labels for {samples} samples or more")


def read_labels(
    labels: Any, samples: int | None = None, names: Sequence[str] | None = None
) -> LabelReader:
    """Read the labels of samples.

    Parameters
    ----------
    labels : str, os.PathLike or array
        - ``.npy``, or ``.npz`` with an array ``labels`` or ``label``; ``FILE.npz:NAME`` names it.
        - ``.csv`` or ``.txt``: a whole number a line, in the order of the samples; or rows of a
          file name and a number, for images: the name is the path within their folder, or its
          last part where that is enough. A first row without a number is a header.
        - ``"folders"``: images are labelled by the folder that they lie in. Folders whose names
          are whole numbers stand for these, others are numbered from 0 in the order of their names.
        - an array or sequence of whole numbers.
    samples : int, optional
        How many there must be.
    names : sequence of str, optional
        The file of each sample, for images.

    Raises
    ------
    DataError
        When they cannot be read, are no whole numbers of shape (samples,), or a sample has none.
    """
    if isinstance(labels, LabelReader):
        reader = labels
    elif isinstance(labels, str) and labels == FOLDERS:
        reader = _of_folders(names)
    elif isinstance(labels, str | os.PathLike):
        reader = LabelReader(_read(os.fspath(labels), names), origin=os.fspath(labels))
    else:
        reader = LabelReader(_whole(labels, "labels"))
    if samples is not None:
        reader.require_samples(samples)
    return reader


def _read(text: str, names: Sequence[str] | None) -> np.ndarray:
    path, key = Path(text), None
    if not path.exists() and ".npz:" in text.lower():
        cut = text.lower().rindex(".npz:") + 4
        path, key = Path(text[:cut]), text[cut + 1 :]
    if not path.exists():  # without an extension, it may be a word misspelt
        raise DataError(f"{path}: no such file" + ("" if path.suffix else f"; {_ACCEPTED}"))
    try:
        match path.suffix.lower():
            case ".npy":
                return _whole(np.load(path, allow_pickle=False), text)
            case ".npz":
                return _whole(_from_archive(path, key), text)
            case ".csv" | ".txt":
                return _from_text(path.read_text("utf-8-sig"), text, names)
    except DataError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds on broken files
        raise unreadable(path, error) from error
    raise DataError(f"{text}: {_ACCEPTED}")


def _from_archive(path: Path, key: str | None) -> np.ndarray:
    # Opened here: NumPy leaves a file that is no archive open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        found = next((name for name in ([key] if key else _KEYS) if name in archive.files), None)
        if found is None:
            wanted = repr(key) if key else "'labels' or 'label'"
            raise DataError(f"{path} has no array {wanted}; it has {', '.join(archive.files)}")
        return np.asarray(archive[found])


def _from_text(text: str, origin: str, names: Sequence[str] | None) -> np.ndarray:
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text))]
    lines = [(number, row) for number, row in enumerate(rows, 1) if any(row)]
    if lines and _number(lines[0][1][-1]) is None:
        del lines[0]
    for number, row in lines:
        if len(row) > 2 or _number(row[-1]) is None:
            raise DataError(
                f"{origin}, line {number}: expected a whole number, or a file name and a whole "
                f"number, got {', '.join(row)!r}"
            )
    if not lines or len(lines[0][1]) == 1:
        return np.array([int(row[-1]) for _, row in lines], np.int64)
    if names is None:
        raise DataError(f"{origin}: labels by file name are for images in a folder")
    return _by_name({row[0]: int(row[-1]) for _, row in lines}, names, origin)


def _by_name(given: dict[str, int], names: Sequence[str], origin: str) -> np.ndarray:
    given = {str(PurePosixPath(name.replace("\\", "/"))): label for name, label in given.items()}
    last = [PurePosixPath(name).name for name in names]
    unique = len(set(last)) == len(last)
    found = [
        given.get(name, given.get(short) if unique else None)
        for name, short in zip(names, last, strict=True)
    ]
    missing = [name for name, label in zip(names, found, strict=True) if label is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{origin} has no label for {missing[0]}{more} of {len(names)} images")
    return np.array(found, np.int64)


def _of_folders(names: Sequence[str] | None) -> LabelReader:
    if names is None:
        raise DataError(f"labels {FOLDERS!r} are for images in a folder")
    folders = [PurePosixPath(name).parts[0] if "/" in name else None for name in names]
    outside = next((name for name, folder in zip(names, folders, strict=True) if not folder), None)
    if outside is not None:
        raise DataError(f"labels {FOLDERS!r}: image {outside} lies in no folder of its own")
    classes = sorted({str(folder) for folder in folders})
    numbers = [_number(name) for name in classes]
    if all(number is not None for number in numbers):
        return LabelReader(np.array([int(str(folder)) for folder in folders], np.int64))
    index = {name: number for number, name in enumerate(classes)}
    values = np.array([index[str(folder)] for folder in folders], np.int64)
    return LabelReader(values, tuple(classes))


def _whole(labels: Any, origin: str) -> np.ndarray:
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iub":
        raise DataError(
            f"{origin}: expected whole numbers of shape (samples,), got {values.dtype} of shape "
            f"{values.shape}"
        )
    return values.astype(np.int64)


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
