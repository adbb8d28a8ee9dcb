"""Time cbn beside a plain copy, PyTorch, oneDNN, onnxruntime and NumPy, where installed.

Contenders take turns in one run; times are medians over the rounds, with the same number of
threads for all. "x copy" and "x cbn" are times over the copy's and over cbn's. "max ULP" is the
largest error of y (in backward, of dx) against a wider type, in units in the last place of its
largest term. CBN_ISA=baseline|v3|v4 chooses the build of cbn's kernels.
"""

from __future__ import annotations

import dataclasses
import json
import os

from benchmarks import options as command
from benchmarks.machine import machine
from benchmarks.peers import CONTENDERS
from benchmarks.peers.plain_copy import compiled_copy
from benchmarks.results import COPY, OURS, Result, summarize
from benchmarks.run import installed, run
from benchmarks.table import format_markdown, format_results, format_summary, format_warnings


def main(arguments: list[str] | None = None) -> None:
    """Read the options, run the cases and print a table or JSON."""
    parser = command.make_parser(__doc__)
    options = parser.parse_args(arguments)
    command.check(parser, options)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when cbn and the peers load
    if options.targets is not None:
        from benchmarks.targets import main as run_targets

        run_targets(parser, options)
        return
    known = known_names()
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only: expected names of {', '.join(known)}, got {', '.join(unknown)}")
    if missing := set(options.only or ()) - {kind.name for kind in installed()}:
        parser.error(f"--only: not installed here: {', '.join(sorted(missing))}")
    kinds = installed([*options.only, OURS, COPY] if options.only else None)
    groups = [
        [
            run(
                case,
                kinds,
                options.rounds,
                options.mean,
                options.deviation,
                retries=options.retries,
            )
            for case in group
        ]
        for group in command.cases(options)
    ]
    if options.plot:
        from benchmarks.picture import draw

        draw(groups, machine(options.threads), options.plot)
    if options.json:
        print(json.dumps(to_dict(groups, options.threads), indent=2))
    elif options.markdown:
        print_markdown(groups, options.threads)
    else:
        print_groups(groups, options.threads)


def known_names() -> list[str]:
    """Return the names of all contenders, also of those that are not installed."""
    return [kind.name for kind in CONTENDERS]


def to_dict(groups: list[list[Result]], threads: int) -> dict[str, object]:
    """Return all as plain values."""
    return {
        "machine": machine(threads),
        "results": [result.to_dict() for group in groups for result in group],
        "summaries": [
            {
                "mode": group[0].case.mode,
                "layout": group[0].case.layout,
                "times": {
                    name: dataclasses.asdict(spread) for name, spread in summarize(group).items()
                },
            }
            for group in groups
        ],
    }


def print_markdown(groups: list[list[Result]], threads: int) -> None:
    """Print a table for each mode and layout."""
    print(", ".join(f"{key} {value}" for key, value in machine(threads).items()))
    for group in groups:
        case = group[0].case
        print(f"\n{case.mode}, {case.dtype}, channels {case.layout}:\n")
        print(format_markdown(group))
        if warnings := format_warnings(group):
            print("", warnings, sep="\n")


def print_groups(groups: list[list[Result]], threads: int) -> None:
    """Print a table and a summary for each mode and layout."""
    print(", ".join(f"{key} {value}" for key, value in machine(threads).items()))
    for group in groups:
        case = group[0].case
        print(f"\n== {case.mode}, {case.dtype}, channels {case.layout} ==\n")
        print(format_results(group), end="\n\n")
        print(format_summary(group))
        if warnings := format_warnings(group):
            print("", warnings, sep="\n")
    print()
    if absent := sorted(set(known_names()) - {kind.name for kind in installed()}):
        print(f"not installed here: {', '.join(absent)}")
    ran = {name for group in groups for result in group for name in result.timings}
    for kind in CONTENDERS:
        if kind.name in ran:
            print(f"{kind.name}: {kind.legend}")
    if compiled_copy() is None:
        print("(no C compiler with OpenMP here: the copy is np.copyto in Python threads)")


if __name__ == "__main__":
    main()
