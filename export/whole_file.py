"""Write a file whole or not at all: beside its target first, and then under its name."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["WriteError", "obstacle", "whole_file"]


class WriteError(OSError):
    """A file cannot be written; the message names it and says why."""

    def __init__(
        self, path: str | os.PathLike[str], reason: str, number: int | None = None
    ) -> None:
        super().__init__(f"cannot write {os.fspath(path)}: {reason}")
        self.reason = reason
        self.errno = number


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, partial: Path | None = None) -> Iterator[Path]:
    """Give the name to write under in place of `path`, and rename once the block is through.

    What was written is on the disk before it gets its name, so that a crash leaves the older file
    or the whole new one. A link stays a link, to the new content. Other files that the block puts
    beside the one it was given go along, before it.

    Parameters
    ----------
    path : str or os.PathLike
        The target.
    partial : pathlib.Path, optional
        What to write under, in the folder of the target, for a caller who removes what a crash
        leaves there. By default a file of the target's name in a temporary folder beside it.

    Raises
    ------
    WriteError
        When the target is no file, has no folder, or the system refuses. Nothing is left behind,
        and an older file stays as it was; so it does when the block raises anything else.
    """
    reason = obstacle(path)
    if reason:
        raise WriteError(path, reason)
    target = Path(os.path.realpath(path))
    try:
        with _place(target, partial) as written:
            yield written
            beside = sorted(written.parent.iterdir()) if partial is None else []
            for file in (*(file for file in beside if file != written), written):
                _flush(file)
                os.replace(file, target if file == written else target.parent / file.name)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error.strerror or str(error), error.errno) from error


def obstacle(path: str | os.PathLike[str]) -> str:
    """Say why no file can be written to `path`, as far as that is known before; empty if nothing.

    The folder's permissions are not looked at: the system's own answer is better.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        return "it is a folder"
    if target.exists() and not target.is_file():
        return "it is a device, pipe or socket, not a file"
    if not target.parent.is_dir():
        return f"there is no folder {target.parent}"
    return ""


@contextlib.contextmanager
def _place(target: Path, partial: Path | None) -> Iterator[Path]:
    if partial is None:
        # The name is the target's, since extensions choose formats, so the folder is another.
        with tempfile.TemporaryDirectory(prefix=".cbn-", dir=target.parent) as folder:
            yield Path(folder, target.name)
        return
    try:
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _flush(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())
