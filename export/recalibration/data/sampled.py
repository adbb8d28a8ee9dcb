"""Batches of samples that can be read in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...data import DataError
from ...inputs import Feeds, ModelInput
from .labels import LabelReader
from .runs import Run, batches_of, count, locate, part
from .tables import Table, join

__all__ = ["SampledSource"]


class SampledSource:
    """Batches cut from a table, all of it or some runs: a `Source` that can be read again.

    Parameters
    ----------
    inputs : sequence of ModelInput
    table : Table
    runs : sequence of (int, int)
        The samples of the table that belong to the source, in order.
    batch_size : int
    fixed : bool
        Whether the model takes batches of that size alone: what is left over is left out.
    labels : LabelReader, optional
        Of the samples of `runs`, in order.
    notes : tuple of str, optional
        What a user should know of how the data are used.

    Raises
    ------
    DataError
        When there is not one batch.
    """

    def __init__(
        self,
        inputs: Sequence[ModelInput],
        table: Table,
        runs: Sequence[Run],
        batch_size: int,
        *,
        fixed: bool,
        labels: LabelReader | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.inputs = tuple(inputs)
        self.table = table
        self.runs = tuple(runs)
        self.batch_size = batch_size
        self.fixed = fixed
        self.labels = labels
        self.notes = notes
        given = count(runs)
        sizes = [count(batch) for batch in self._batches()]
        self.samples = sum(sizes)
        self.batches = len(sizes)
        if not sizes:
            raise DataError(
                f"the model takes batches of {batch_size} samples, got {given}"
                if given
                else "the data hold no sample"
            )
        if self.samples < given:
            used = tuple(run for batch in self._batches() for run in batch)
            if labels is not None:
                self.labels = labels.select(locate(runs, used))
            self.runs = used
            self.notes += (left_out(given - self.samples, given, batch_size),)

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for feeds, _ in self.numbered())

    def numbered(self, start: int = 0) -> Iterator[tuple[Feeds, int]]:
        """Give each batch from number `start` on with the index of its first sample."""
        first = 0
        try:
            for index, runs in enumerate(self._batches()):
                if index >= start:
                    yield join([self.table.read(*run) for run in runs]), first
                first += count(runs)
        finally:
            self.table.close()

    def fingerprint(self) -> str:
        """Tell the data, and how they are cut, from others."""
        return f"{self.table.fingerprint()}\n{self.runs} {self.batch_size} {self.fixed}"

    def select(self, runs: Sequence[Run]) -> SampledSource:
        """Return the source of some of the samples, numbered from 0 in this one."""
        return SampledSource(
            self.inputs,
            self.table,
            part(self.runs, runs),
            self.batch_size,
            fixed=self.fixed,
            labels=None if self.labels is None else self.labels.select(runs),
            notes=self.notes,
        )

    def _batches(self) -> Iterator[list[Run]]:
        return batches_of(self.runs, self.table.breaks, self.batch_size, fixed=self.fixed)


def left_out(lost: int, samples: int, size: int) -> str:
    """Say that samples are not used, and why."""
    return f"{lost} of {samples} samples are left out: the model takes batches of {size}"
