"""What the package costs before any call: time to import it, size of its wheel."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.run import progress
from benchmarks.targets.base import MEGABYTE, Row, Session, missing

GROUP = "package"
IMPORT_BAR = 15.0  # ms
WHEEL_BAR = 1.0  # MB
PROGRAM = """
import time
start = time.perf_counter()
import {}
print(time.perf_counter() - start)
"""


def package(session: Session) -> Iterator[Row]:
    """Import in fresh processes, with and without cbn by turns; weigh the wheel."""
    rounds = session.options.rounds
    progress("imports")
    _import_ms("numpy, cbn")  # the files are read from disk before the clock counts
    pairs = [(_import_ms("numpy"), _import_ms("numpy, cbn")) for _ in range(rounds)]
    alone, both = map(statistics.median, zip(*pairs, strict=True))
    added = statistics.median(after - before for before, after in pairs)
    yield Row(
        GROUP,
        f"import cbn adds to import numpy, ms, median of {rounds} pairs",
        f"<= {IMPORT_BAR:g}",
        f"{added:.1f}",
        added <= IMPORT_BAR,
        f"numpy {alone:.0f}, both {both:.0f}",
    )
    name = "size of the wheel, MB"
    wheel = session.options.wheel
    if wheel is None:
        yield missing(GROUP, name, "give one with --wheel")
        return
    size = wheel.stat().st_size / MEGABYTE
    yield Row(GROUP, name, f"< {WHEEL_BAR:g}", f"{size:.2f}", size < WHEEL_BAR, wheel.name)


def _import_ms(modules: str) -> float:
    # -P: the cbn that is installed, and not the sources of the checkout in which this runs
    command = [sys.executable, "-P", "-c", PROGRAM.format(modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) * 1e3
