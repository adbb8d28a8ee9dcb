"""How a command ends: bad input as one line on stderr, and the exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from cbn.cli.output import printable

__all__ = [
    "BAD_INPUT",
    "BROKEN_PIPE",
    "DOES_NOT_HOLD",
    "INTERRUPTED",
    "KEPT",
    "CommandGroup",
    "about",
    "extras",
    "keeping",
]

DOES_NOT_HOLD = 1
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE

KEPT = "kept, the same command goes on from there"  # said of a checkpoint


@contextmanager
def about(file: Path, *others: Path | str | None, data: Path | None = None) -> Iterator[None]:
    """Put the file that an error is about before its message, where that names none, nor `others`.

    What is wrong with data is about `data`, all else about `file`.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if any(str(path) in str(error) for path in (file, data, *others) if path is not None):
            raise
        raise ValueError(f"{_subject(error, file, data)}: {error}") from error


def _subject(error: Exception, file: Path, data: Path | None) -> Path:
    from cbn.export import DataError

    return data if data is not None and isinstance(error, DataError) else file


@contextmanager
def extras() -> Iterator[None]:
    """Make bad input, one line that names the extra, of a package that is not installed."""
    try:
        yield
    except ImportError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise  # a defect, or a broken installation: with its traceback
        raise ValueError(str(error)) from error


@contextmanager
def keeping(checkpoint: Path | None) -> Iterator[None]:
    """Have Ctrl-C say that the checkpoint, once there is one, was kept."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint is None or not checkpoint.exists():
            raise
        raise KeyboardInterrupt(f"{checkpoint}: {KEPT}") from None


class CommandGroup(TyperGroup):
    """The commands of ``cbn``, with one answer to bad input for all of them.

    ``ValueError``, ``TypeError`` and ``OSError``, which is what cbn raises for bad input, become
    one line on stderr. Anything else is a defect and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; see the class."""
        # A name that the terminal's encoding lacks must not end the command.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            _discard_stdout()
            raise typer.Exit(BROKEN_PIPE) from None
        except KeyboardInterrupt as error:
            print("; ".join(["cbn: interrupted", *map(printable, error.args)]), file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            bad_input = isinstance(error, ValueError | TypeError | OSError)
            if not bad_input or os.environ.get("CBN_TRACEBACK"):
                raise
            print(f"cbn: error: {_one_line(error)}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from None


def _one_line(error: Exception) -> str:
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        named = [str(error.filename)] if error.filename is not None else []
        message = ": ".join([*named, error.strerror])
    return printable(" ".join(message.split()))


def _discard_stdout() -> None:
    """Send what is left to nowhere, or the flush at exit would complain of the pipe again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
