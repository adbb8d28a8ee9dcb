"""What the commands that repair a model share: run, print, write only what is proved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cbn.cli.errors import DOES_NOT_HOLD, about
from cbn.cli.output import count, print_json, print_verdict, printable, working
from cbn.cli.tables import print_report, print_table

if TYPE_CHECKING:
    from cbn.export import RewriteResult

__all__ = ["named_files", "require_apart", "require_elsewhere", "require_outside", "rewrite"]


def rewrite(
    verb: str,
    model: Path,
    output: Path,
    data: Path | None,
    force: bool,
    as_json: bool,
    run: Callable[[], RewriteResult],
) -> None:
    """Run a rewrite, print what it did, and write its model if it holds or `force` says so.

    It does not hold, and the exit code is 1, when a node that was to change did not, or the proof
    fails.
    """
    from cbn import export
    from cbn.export.files import weight_files

    with about(model):
        held = weight_files(model)
    for target in (output, output.with_name(f"{output.name}.data")):
        require_elsewhere(target, model, data, *held)
    with working(f"{verb} {model}"), about(model, data):
        result = run()
    proved = result.proof is None or bool(result.proof)
    written = bool(result) or force
    if written:
        with working(f"writing {output}"):
            export.save(result.model, output)
    if as_json:
        print_json({**result.to_dict(), "output": str(output) if written else None})
    else:
        _print(result, output, written, proved)
    if not result:
        raise typer.Exit(DOES_NOT_HOLD)


def require_elsewhere(output: Path, *inputs: Path | None) -> None:
    """Refuse, before any work, an output that is one of the inputs or has no folder to go to."""
    for given in inputs:
        if given is not None and output.exists() and given.exists() and output.samefile(given):
            raise ValueError(
                f"{output}: the output would overwrite an input, which is never touched; "
                "choose another name"
            )
    if output.is_dir():
        raise ValueError(f"{output}: the output is a folder, expected a file name")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output}: the folder {output.parent} cannot be written to")


def named_files(text: str) -> tuple[Path, ...]:
    """The files that an option may name: itself, or what stands before ``:function``, ``:name``."""
    return Path(text), Path(text.rpartition(":")[0] or text)


def require_outside(output: Path, data: Path) -> None:
    """Refuse, before any work, an output inside a folder of data, where it would be data too."""
    if data.is_dir() and output.resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"{output}: the output would lie in the folder of the data, {data}, which is never "
            "touched; choose another folder"
        )


def require_apart(*outputs: Path | None) -> None:
    """Refuse, before any work, two outputs of one name: the last would replace the others."""
    taken: set[Path] = set()
    for output in outputs:
        if output is not None and output.resolve() in taken:
            raise ValueError(f"{output}: named for two outputs; choose another name for one")
        if output is not None:
            taken.add(output.resolve())


def _print(result: RewriteResult, output: Path, written: bool, proved: bool) -> None:
    print_report(result)
    for note in result.notes:
        typer.echo(f"\n{printable(note)}")
    if result.proof is not None:
        rows = [row for row in result.proof.rows if row.kind == "output" or not row.ok]
        if rows:
            typer.echo()
            cells = [row.cells() for row in rows]
            print_table(result.proof.columns, cells, [row.ok for row in rows])
    typer.echo()
    failed = sum(not row.ok for row in result.rows)
    text = result.summary
    if failed:
        text = f"{count(failed, 'node')} could not be changed; {text}"
    print_verdict(result.ok, text, nothing=result.ok and not result.changed)
    if written:
        typer.echo(f"{output}: written{'' if result else ' all the same (--force)'}")
    else:
        why = "a node could not be changed" if proved else "the proof does not hold"
        typer.echo(f"{output}: not written, since {why} (--force writes it)")
