"""Batches from any Python iterable, as they come or cut anew."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data import DataError, as_array, check_input, choose, cut_size, only, renamed
from ...inputs import Feeds, ModelInput
from .labels import LabelReader
from .runs import Run, count, part
from .sampled import left_out
from .tables import content_mark, join, shared_axis

__all__ = ["Spool", "StreamSource", "feeds_of"]


class StreamSource:
    """Batches of an iterable that can be read again: a `Source`.

    Inputs that share no first axis cannot be cut: such a batch counts as one sample.

    Parameters
    ----------
    inputs : sequence of ModelInput
    open : callable
        Gives an iterator over what `feeds_of` takes; each call has to give the same, of which the
        first batch is compared.
    origin : str
        Names the data in errors.
    mark : str, optional
        Tells the data from others, beside the content of the first batch.
    size : int, optional
        Cut the batches anew to this size; as they come by default.
    fixed : bool, default: False
        Whether the model takes batches of that size alone: what is left over is left out.
    runs : sequence of (int, int), optional
        The samples that belong to the source; all by default.
    labels : LabelReader, optional
        Of the samples of the source, in order.
    samples, batches : int, optional
        Where they are known before all is read.
    begin : tuple of str, optional
        What the first batch that `open` gives is known by, where it was read before.
    notes : tuple of str, optional
        What a user should know of how the data are read.

    Raises
    ------
    DataError
        When there is no batch, the first one does not fit the model, or a further pass begins with
        another one.
    """

    def __init__(
        self,
        inputs: Sequence[ModelInput],
        open: Callable[[], Iterator[Any]],
        *,
        origin: str = "the data",
        mark: str = "",
        size: int | None = None,
        fixed: bool = False,
        runs: Sequence[Run] | None = None,
        labels: LabelReader | None = None,
        samples: int | None = None,
        batches: int | None = None,
        begin: tuple[str, ...] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.inputs = tuple(inputs)
        self.origin = origin
        self.size = size
        self.fixed = fixed
        self.labels = labels
        self.samples = samples
        self.batches = batches
        self.notes = notes
        self._open = open
        self._mark = mark
        self._begin = begin
        self._runs = None if runs is None else tuple(runs)
        first = next(self._chosen(), None)
        if first is None:
            raise DataError(f"{origin}: there is no batch")
        self.batch_size = size or _rows(first, self.inputs)
        self._first = _told(first)

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for feeds, _ in self.numbered())

    def numbered(self, start: int = 0) -> Iterator[tuple[Feeds, int]]:
        """Give each batch from number `start` on with the index of its first sample."""
        first = index = 0
        given = 0

        def counted() -> Iterator[Feeds]:
            nonlocal given
            for feeds in self._chosen():
                given += _rows(feeds, self.inputs)
                yield feeds

        for feeds in self._cut(counted()):
            if index >= start:
                yield feeds, first
            first += _rows(feeds, self.inputs)
            index += 1
        if not index:
            raise DataError(
                f"{self.origin}: the model takes batches of {self.batch_size} samples, got {given}"
            )
        if self.labels is not None:
            self.labels.require_samples(given)
        self.samples, self.batches = first, index
        if first < given:
            said = left_out(given - first, given, self.batch_size)
            self.notes = tuple(dict.fromkeys((*self.notes, said)))

    def fingerprint(self) -> str:
        """Tell the data by their first batch, and how they are cut."""
        return "\n".join([self._mark, *self._first, f"{self._runs} {self.size} {self.fixed}"])

    def select(self, runs: Sequence[Run]) -> StreamSource:
        """Return the source of some of the samples, numbered from 0 in this one."""
        return StreamSource(
            self.inputs,
            self._open,
            origin=self.origin,
            mark=self._mark,
            size=self.size,
            fixed=self.fixed,
            runs=runs if self._runs is None else part(self._runs, runs),
            labels=None if self.labels is None else self.labels.select(runs),
            samples=count(runs),
            begin=self._begin,
            notes=self.notes,
        )

    def _chosen(self) -> Iterator[Feeds]:
        """Batches as they come, less the samples that are not wanted."""
        runs = list(self._runs) if self._runs is not None else None
        at = 0
        for index, item in enumerate(self._open()):
            feeds = feeds_of(item, self.inputs, f"{self.origin}, batch {index}")
            rows = _rows(feeds, self.inputs)
            if not index:
                self._compare(feeds)
                self.notes = tuple(dict.fromkeys((*self.notes, *_remarks(item, self.inputs))))
            if runs is None:
                yield feeds
            else:
                wanted = [(max(a, at) - at, min(b, at + rows) - at) for a, b in runs]
                wanted = [(a, b) for a, b in wanted if a < b]
                if wanted == [(0, rows)]:
                    yield feeds
                elif wanted:
                    yield join([{n: x[a:b] for n, x in feeds.items()} for a, b in wanted])
                while runs and runs[0][1] <= at + rows:
                    runs.pop(0)
                if not runs:
                    return
            at += rows

    def _compare(self, feeds: Feeds) -> None:
        """Refuse what is shuffled anew: samples that are held out would be measured too."""
        begin = _told(feeds)
        if self._begin is None:
            self._begin = begin
        elif self._begin != begin:
            raise DataError(
                f"{self.origin}: gives other batches on each pass: switch shuffling and random "
                "changes off, or give a generator, which is read once"
            )

    def _cut(self, stream: Iterator[Feeds]) -> Iterator[Feeds]:
        """Cut batches anew where a size is asked for and they can be cut."""
        held: list[Feeds] = []
        rows = 0
        for feeds in stream:
            more = shared_axis(feeds, self.inputs)
            if self.size is None or more is None:
                yield feeds
                continue
            if held and not _alike(held[0], feeds):
                if self.fixed and self.labels is not None:
                    raise DataError(
                        f"{self.origin}: samples of several shapes do not fill batches of "
                        f"{self.size}, and what is left out has labels: give a folder of files"
                    )
                yield from self._rest(held)
                held, rows = [], 0
            held.append(feeds)
            rows += more
            if rows >= self.size:
                whole = join(held)
                for start in range(0, rows - self.size + 1, self.size):
                    yield {n: x[start : start + self.size] for n, x in whole.items()}
                over = rows % self.size
                held = [{n: x[rows - over :] for n, x in whole.items()}] if over else []
                rows = over
        yield from self._rest(held)

    def _rest(self, held: Sequence[Feeds]) -> Iterator[Feeds]:
        if held and not self.fixed:
            yield join(held)


class Spool:
    """Batches of an iterator, which can be read once, in a temporary folder of its own.

    Called, it gives an iterator over them. The folder goes when the spool is no longer used.
    `mark` tells the batches from others, by all of their content; `notes` is what a user should
    know of how they are read.

    Parameters
    ----------
    items : iterator
        Gives what `feeds_of` takes.
    inputs : sequence of ModelInput
    origin : str
        Names the data in errors.
    limit : int, optional
        End after so many samples.

    Raises
    ------
    DataError
        When a batch does not fit the model, or the folder cannot be written.
    """

    def __init__(
        self,
        items: Iterator[Any],
        inputs: Sequence[ModelInput],
        origin: str,
        limit: int | None = None,
    ) -> None:
        self.samples = self.batches = 0
        self.notes: tuple[str, ...] = ()
        digest = hashlib.sha256()
        self.folder = Path(tempfile.mkdtemp(prefix="cbn-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        try:
            for item in items:
                feeds = feeds_of(item, inputs, f"{origin}, batch {self.batches}")
                self.notes = self.notes if self.batches else _remarks(item, inputs)
                with self._path(self.batches).open("wb") as file:
                    pickle.dump(feeds, file, protocol=pickle.HIGHEST_PROTOCOL)
                digest.update("\n".join(("", *_told(feeds))).encode())
                self.batches += 1
                self.samples += _rows(feeds, inputs)
                if limit is not None and self.samples >= limit:
                    break
        except OSError as error:
            raise DataError(
                f"{origin}: cannot be copied to {self.folder}: {error.strerror or error}"
            ) from error
        self.mark = digest.hexdigest()

    def __call__(self) -> Iterator[Feeds]:
        """Give the batches, in order."""
        for index in range(self.batches):
            with self._path(index).open("rb") as file:
                yield pickle.load(file)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:08}.pickle"


def feeds_of(item: Any, inputs: Sequence[ModelInput], origin: str) -> Feeds:
    """Make what a model is fed of one batch.

    Parameters
    ----------
    item : mapping, tuple, list or array
        Arrays by input, in the order of the inputs, or that of the only input.
    inputs : sequence of ModelInput
    origin : str
        Names the batch in errors.

    Returns
    -------
    dict of str to numpy.ndarray
        Copies: what gave them may use its buffers again.

    Raises
    ------
    DataError
        When an input is missing, or a type or shape does not fit.
    """
    try:
        if isinstance(item, Mapping):
            found = _arrays(item)
        elif isinstance(item, tuple | list):
            if len(item) != len(inputs):
                names = ", ".join(repr(declared.name) for declared in inputs)
                raise DataError(
                    f"expected an array for each of the inputs {names}, got {len(item)}; give a "
                    "mapping by name, or leave out what is no input"
                )
            found = {d.name: as_array(d.name, a) for d, a in zip(inputs, item, strict=True)}
        else:
            found = only(as_array("data", item), inputs)
        feeds = choose(found, inputs, "it")
        for declared in inputs:
            check_input(feeds[declared.name], declared)
        if shared_axis(feeds, inputs) is None:
            cut_size(feeds, inputs)  # refuses what the model does not take whole
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error
    return {name: np.array(array) for name, array in feeds.items()}


def _remarks(item: Any, inputs: Sequence[ModelInput]) -> tuple[str, ...]:
    """What a user should know of how a batch is read, which `feeds_of` takes."""
    if not isinstance(item, Mapping):
        return ()
    found = _arrays(item)
    remark = renamed(found, choose(found, inputs, "it"))
    return (remark,) if remark else ()


def _arrays(item: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    return {str(name): as_array(name, array) for name, array in item.items()}


def _rows(feeds: Feeds, inputs: Sequence[ModelInput]) -> int:
    rows = shared_axis(feeds, inputs)
    return 1 if rows is None else rows


def _told(feeds: Feeds) -> tuple[str, ...]:
    """What a batch is known by."""
    return tuple(
        f"{n} {array.dtype} {array.shape} {content_mark(array)}" for n, array in feeds.items()
    )


def _alike(one: Feeds, two: Feeds) -> bool:
    return all(one[name].shape[1:] == two[name].shape[1:] for name in one)
