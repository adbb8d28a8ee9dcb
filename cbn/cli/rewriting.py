"""What the commands that repair a model share: run, print, write only what is proved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cbn.cli.destinations import model_files, require_file, written_with
from cbn.cli.errors import DOES_NOT_HOLD, about
from cbn.cli.output import count, print_json, print_text, print_verdict, working
from cbn.cli.tables import print_report, print_table

if TYPE_CHECKING:
    from cbn.export import RewriteResult

__all__ = ["rewrite"]


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

    read = model_files(model)
    for target in written_with(output):
        require_file("--output", target, *read, data)
    with working(f"{verb} {model}"), about(model, data=data):
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


def _print(result: RewriteResult, output: Path, written: bool, proved: bool) -> None:
    print_report(result)
    for note in result.notes:
        typer.echo()
        print_text(note)
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
    print_verdict(result.ok, text, instead="" if result.changed else "nothing changed")
    if written:
        typer.echo(f"{output}: written{'' if result else ' all the same (--force)'}")
    else:
        why = "a node could not be changed" if proved else "the proof does not hold"
        typer.echo(f"{output}: not written, since {why} (--force writes it)")
