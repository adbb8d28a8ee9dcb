"""Samples of which any run can be read without the rest."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...inputs import Feeds, ModelInput

__all__ = ["Joined", "Rows", "Table", "content_mark", "file_mark", "join", "shared_axis"]

Rows = dict[str, tuple[Any, tuple[int, ...]]]
"""Type and shape of one sample of each input."""


class Table(Protocol):
    """Samples that can be read in any order, a run at a time.

    Attributes
    ----------
    samples : int or None
        None where the inputs share no first axis: the whole is one batch.
    row : dict
        Type and shape of one sample of each input; of the whole where samples is None.
    breaks : tuple of int
        Before which samples the shape changes, so that a batch cannot go across.
    names : tuple of str or None
        The file of each sample, where each has one.
    notes : tuple of str
        What a user should know of how the data are read.
    """

    @property
    def samples(self) -> int | None:
        """How many there are."""
        ...

    @property
    def row(self) -> Rows:
        """Type and shape of one sample of each input."""
        ...

    @property
    def breaks(self) -> tuple[int, ...]:
        """Before which samples the shape changes."""
        ...

    @property
    def names(self) -> tuple[str, ...] | None:
        """The file of each sample."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the data are read."""
        ...

    def read(self, start: int, stop: int) -> Feeds:
        """Read a run of samples."""
        ...

    def close(self) -> None:
        """Close what is open; a further read opens it again."""
        ...

    def fingerprint(self) -> str:
        """Tell these data from others, without reading them all."""
        ...


def shared_axis(feeds: Mapping[str, Any], inputs: Sequence[ModelInput]) -> int | None:
    """Return the number of samples; None where the inputs share no first axis."""
    if any(declared.shape == () for declared in inputs):
        return None
    lengths = {array.shape[0] if len(array.shape) else None for array in feeds.values()}
    fixed = {d.shape[0] for d in inputs if d.shape and isinstance(d.shape[0], int)}
    return lengths.pop() if len(lengths) == 1 and len(fixed) <= 1 else None


def file_mark(path: Path) -> str:
    """Tell a file from others of its name: where it is, its size and when it was written."""
    state = path.stat()
    return f"{path.absolute()} {state.st_size} {state.st_mtime_ns}"


def content_mark(array: Any) -> str:
    """Tell arrays apart by their content."""
    values = np.ascontiguousarray(array)
    if values.dtype.hasobject:
        return hashlib.sha256(repr(values.tolist()).encode()).hexdigest()[:16]
    return hashlib.sha256(values.reshape(-1).view(np.uint8).data).hexdigest()[:16]


class Joined:
    """Tables one after the other, of which one is open at a time."""

    names: tuple[str, ...] | None = None

    def __init__(self, parts: Sequence[Table]) -> None:
        self.parts = parts
        self._edges = [0]
        for table in parts:
            self._edges.append(self._edges[-1] + (table.samples or 0))
        self.samples: int | None = self._edges[-1]
        self.row = parts[0].row
        self.notes = tuple(dict.fromkeys(note for table in parts for note in table.notes))
        self.breaks = tuple(
            self._edges[index]
            for index in range(1, len(parts))
            if parts[index].row != parts[index - 1].row
        )
        self._open = 0

    def read(self, start: int, stop: int) -> Feeds:
        """Read a run of samples, from one part or several."""
        pieces = []
        while start < stop:
            index = bisect_right(self._edges, start) - 1
            if index != self._open:
                self.parts[self._open].close()
                self._open = index
            first, last = self._edges[index : index + 2]
            end = min(stop, last)
            pieces.append(self.parts[index].read(start - first, end - first))
            start = end
        return join(pieces)

    def close(self) -> None:
        """Close the part that is open."""
        self.parts[self._open].close()

    def fingerprint(self) -> str:
        """Those of the parts."""
        return "\n".join(table.fingerprint() for table in self.parts)


def join(pieces: Sequence[Feeds]) -> Feeds:
    """Put batches together along the first axis."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
