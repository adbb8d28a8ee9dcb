"""The user's own data as batches that fit a model, whatever their size and form."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ...data import DataError
from ...inputs import Feeds, ModelInput
from .images import ImageOptions
from .labels import LabelReader
from .opening import Opener
from .runs import Run, complement, spread
from .sampled import SampledSource
from .streams import StreamSource

__all__ = ["ImageOptions", "LabelReader", "Source", "open_source", "split"]


class Source(Protocol):
    """Batches in a fixed order, which can be read again and again.

    Attributes
    ----------
    inputs : tuple of ModelInput
    samples, batches : int or None
        How many there are; None while that is not known.
    batch_size : int
        The largest number of samples in a batch (of the first batch, where they come as they are).
    fixed : bool
        Whether the model takes batches of that size alone.
    labels : LabelReader or None
        Of the samples, in order.
    notes : tuple of str
        What a user should know of how the data are used, such as samples that are left out.
    """

    @property
    def inputs(self) -> tuple[ModelInput, ...]:
        """The model's inputs."""
        ...

    @property
    def samples(self) -> int | None:
        """How many samples there are."""
        ...

    @property
    def batches(self) -> int | None:
        """How many batches there are."""
        ...

    @property
    def batch_size(self) -> int:
        """The largest number of samples in a batch."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether the model takes batches of that size alone."""
        ...

    @property
    def labels(self) -> LabelReader | None:
        """The labels of the samples, in order."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the data are used."""
        ...

    def __iter__(self) -> Iterator[Feeds]:
        """Give the batches, each a dict of arrays by input."""
        ...

    def numbered(self, start: int = 0) -> Iterator[tuple[Feeds, int]]:
        """Give each batch from number `start` on with the index of its first sample."""
        ...

    def fingerprint(self) -> str:
        """Tell the data, and how they are cut, from others, without reading them all."""
        ...

    def select(self, runs: Sequence[Run]) -> Source:
        """Return the source of some of the samples: runs (start, stop) in order."""
        ...


def open_source(
    data: Any,
    inputs: Sequence[ModelInput],
    *,
    batch_size: int | None = None,
    images: ImageOptions | str | os.PathLike[str] | None = None,
    limit: int | None = None,
    labels: Any = None,
) -> Source:
    """Open data for a model; they are read batch by batch and may be larger than memory.

    Parameters
    ----------
    data : str, os.PathLike, mapping, array, callable, iterable or Source
        - ``.npy``: the input of a model that has one; memory-mapped.
        - ``.npz``: an array for each input, by its name; arrays that are no input are ignored, and
          a model with one input takes the only array that fits it. Unpacked as it is read.
        - a folder of these: one after the other in the order of their names, ``part10`` after
          ``part9``.
        - ``.pb``, or a folder with ``input_0.pb``, ..., or of folders ``test_data_set_0``, ...:
          ONNX test data.
        - a folder of images: see `ImageOptions`.
        - ``script.py:function``: what the function returns, any of these. It is called anew for
          each pass when it returns an iterator. The script's folder is added to ``sys.path``.
        - a mapping of names to arrays, or an array: in memory, or whatever has a ``dtype``, a
          ``shape`` and slices, such as HDF5 datasets.
        - a function without parameters: as in a script.
        - an iterable of batches: mappings, tuples or lists in the order of the inputs, arrays. One
          that can be iterated once, such as a generator, is copied to a temporary folder first.
          Another is read several times and has to give the same batches each time: switch the
          shuffling and random augmentation of a loader off.
        - what this function returned before, as it is.
    inputs : sequence of ModelInput
        From ``model_inputs``. Types must be the declared ones, nothing is converted.
    batch_size : int, optional
        Samples in a batch, at most. By default what the model declares; else those of an iterable
        stay as they are, and others are of 32. Where data are cut, batches are made as equal as
        can be. A model that takes one size alone gets that, and what is left over is left out
        with a note.
    images : ImageOptions, str or os.PathLike, optional
        For a folder of images; a path is that of a TOML file.
    limit : int, optional
        Use so many samples: from everywhere in the data, so that data sorted by class keep all of
        their classes; of an iterable the first.
    labels : optional
        See `read_labels`.

    Returns
    -------
    Source

    Raises
    ------
    DataError
        When something cannot be read or does not fit the model; the message names the file or the
        number of the batch. When an iterable begins with another batch on a further pass, which is
        found as it is read.
    ImportError
        When Pillow is needed and not installed.
    ValueError
        When `data` is a source already and an option is given.
    """
    if isinstance(data, SampledSource | StreamSource):
        if any(option is not None for option in (batch_size, images, limit, labels)):
            raise ValueError(
                "batch_size, images, limit and labels are those that the source was opened with: "
                "leave them out"
            )
        return data
    for name, number in (("batch_size", batch_size), ("limit", limit)):
        if number is not None and number < 1:
            raise DataError(f"expected {name} of 1 or more, got {number}")
    if images is not None and not isinstance(images, ImageOptions):
        images = ImageOptions.from_toml(images)
    return Opener(tuple(inputs), batch_size, images, limit, labels).open(data)


def split(source: Source, held_out: float = 0.2, seed: int = 0) -> tuple[Source, Source]:
    """Part data in two: what statistics are taken from, and what is held out to check them.

    The data are cut into up to a hundred equal stretches, and one run of consecutive samples at a
    seeded place is held out of each. Runs from everywhere, because data are often sorted by class
    or by scene, where the last fifth would be of other classes than the rest. Runs and not single
    samples, because neighbouring frames of a video are nearly the same, and a sample that is held
    out should not have its twin in the other part.

    Where the number of samples is not known, the data are read once to count them. A model that
    takes batches of one size has whole batches held out.

    Parameters
    ----------
    source : Source
    held_out : float, default: 0.2
        The part that is held out, between 0 and 1; at least one sample (or batch) on both sides.
    seed : int, default: 0

    Returns
    -------
    rest, held : Source
        Disjoint, both in the order of the data; the same for the same seed.

    Raises
    ------
    DataError
        When there are fewer than two samples, or two batches where their size is fixed.
    ValueError
        When `held_out` is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"expected held_out between 0 and 1, got {held_out!r}")
    samples = source.samples
    if samples is None:
        for _ in source:
            pass
        samples = source.samples
    assert samples is not None
    unit = source.batch_size if source.fixed else 1
    units = samples // unit
    if units < 2:
        what = f"batches of {unit} samples" if unit > 1 else "samples"
        raise DataError(f"to hold some out takes 2 {what} or more, got {units}")
    wanted = min(max(round(units * held_out), 1), units - 1)
    held = spread(units, wanted, np.random.default_rng(seed))
    rest = complement(held, units)
    first, second = ([(a * unit, b * unit) for a, b in runs] for runs in (rest, held))
    return source.select(first), source.select(second)
