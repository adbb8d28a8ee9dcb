"""Packages of an extra that is not installed: bad input, not a defect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extras"]


@contextmanager
def extras() -> Iterator[None]:
    """Make one line of the error that names the extra to install."""
    try:
        yield
    except ImportError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise  # a defect, or a broken installation: with its traceback
        raise ValueError(str(error)) from error
