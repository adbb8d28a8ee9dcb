"""Where a command writes to: refused before any work where it is no place for a file."""

from __future__ import annotations

import os
from pathlib import Path

from cbn.cli.errors import about

__all__ = [
    "model_files",
    "named_files",
    "require_apart",
    "require_file",
    "require_outside",
    "written_with",
]


def require_file(option: str, output: Path, *inputs: Path | None) -> None:
    """Refuse an output that cannot be a file, or is one of the inputs; `option` names it."""
    from cbn.export.whole_file import obstacle

    for given in inputs:
        if given is not None and output.exists() and given.exists() and output.samefile(given):
            raise ValueError(
                f"{option}: the output would overwrite an input, {output}, which is never touched; "
                "choose another name"
            )
    reason = obstacle(output)
    if not reason and not os.access(output.parent, os.W_OK):
        reason = f"the folder {output.parent} cannot be written to"
    if reason:
        raise ValueError(
            f"{option}: expected the name of a file to write, got {str(output)!r}: {reason}"
        )


def require_outside(option: str, output: Path, data: Path) -> None:
    """Refuse an output inside a folder of data, where it would be data too."""
    if data.is_dir() and output.resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"{option}: the output {output} would lie in the folder of the data, {data}, which is "
            "never touched; choose another folder"
        )


def require_apart(*outputs: Path | None) -> None:
    """Refuse two outputs of one name: the last would replace the others."""
    taken: set[Path] = set()
    for output in outputs:
        if output is not None and output.resolve() in taken:
            raise ValueError(f"{output}: named for two outputs; choose another name for one")
        if output is not None:
            taken.add(output.resolve())


def written_with(output: Path) -> tuple[Path, Path]:
    """Give the file of a model that is written, and that of its weights where they go apart."""
    return output, Path(f"{output}.data")


def model_files(model: Path) -> tuple[Path, ...]:
    """Give the file of a model that is read, and those beside it that hold its weights."""
    from cbn.export.files import weight_files

    with about(model):
        return model, *weight_files(model)


def named_files(text: str) -> tuple[Path, ...]:
    """The files that an option may name: itself, or what stands before ``:function``, ``:name``."""
    return Path(text), Path(text.rpartition(":")[0] or text)
