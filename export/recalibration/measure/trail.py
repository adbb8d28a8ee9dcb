"""Batches of a source, and a digest of all that were read, which a checkpoint goes on from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ...inputs import Feeds
from ..data.sources import Source
from ..data.streams import StreamSource
from ..data.tables import content_mark
from .checkpoint import Checkpoint, CheckpointError

__all__ = ["Trail"]


class Trail:
    """Batches of a source from where a checkpoint is on, if they follow what it has read.

    Data that can be read in any order are told by the source's fingerprint. Of a stream, that
    tells no more than the first batch, and what comes before has to be read again in any case:
    its batches are compared with those that the checkpoint has read.

    Parameters
    ----------
    source : Source
    checkpoint : Checkpoint or None
        None: nothing is compared.
    """

    def __init__(self, source: Source, checkpoint: Checkpoint | None) -> None:
        self._source = source
        self._checkpoint = checkpoint
        self._marks = [""]
        self._followed = checkpoint is not None and isinstance(source, StreamSource)

    def numbered(self) -> Iterator[tuple[Feeds, int]]:
        """Give each batch that is not through with the index of its first sample.

        Raises
        ------
        CheckpointError
            When the batches before are not those that the checkpoint has read.
        """
        start = 0 if self._checkpoint is None else self._checkpoint.load()[0]
        if not self._followed:
            yield from self._source.numbered(start)
            return
        for index, (feeds, first) in enumerate(self._source.numbered()):
            if index == start:
                self._compare()
            self._marks.append(_following(self._marks[-1], feeds))
            if index >= start:
                yield feeds, first
        if len(self._marks) <= start + 1:
            self._compare()

    def check(self) -> None:
        """Read all of the source once, where that is what tells it from others.

        Raises
        ------
        CheckpointError
            When the batches are not those that the checkpoint has read.
        """
        if self._followed:
            for feeds, _ in self._source.numbered():
                self._marks.append(_following(self._marks[-1], feeds))
            self._compare()

    def mark(self, done: int) -> str:
        """Return the digest of the first batches; empty where the source's fingerprint tells."""
        return self._marks[done] if self._followed else ""

    def _compare(self) -> None:
        assert self._checkpoint is not None
        if self._checkpoint.trail != self._marks[-1]:
            raise CheckpointError(
                f"{self._checkpoint.path}: the checkpoint of a run on other data: the batches that "
                "it has read differ from those that come now; give another name, or delete it to "
                "start anew"
            )


def _following(mark: str, feeds: Feeds) -> str:
    told = (f"{name} {a.dtype} {a.shape} {content_mark(a)}" for name, a in sorted(feeds.items()))
    return hashlib.sha256("\n".join([mark, *told]).encode()).hexdigest()
