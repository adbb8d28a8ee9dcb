"""What the package costs before any call: time to import it, size of its wheel."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.load import Neighbours, remark
from benchmarks.run import progress
from benchmarks.targets.base import MEGABYTE, Row, Session, missing

GROUP = "package"
IMPORT_BAR = 15.0  # ms
WHEEL_BAR = 1.0  # MB
PROGRAM = """
import time
start = time.perf_counter()
import numpy
between = time.perf_counter()
import cbn
print(between - start, time.perf_counter() - between)
"""


def package(session: Session) -> Iterator[Row]:
    """Import in fresh processes, NumPy first and then cbn; weigh the wheel."""
    rounds = session.options.rounds
    progress("imports")
    _import_ms()  # the files are read from disk before the clock counts
    neighbours = Neighbours()
    numpy, added = map(statistics.median, zip(*(_import_ms() for _ in range(rounds)), strict=True))
    yield Row(
        GROUP,
        f"import cbn adds to import numpy, ms, median of {rounds} processes",
        f"<= {IMPORT_BAR:g}",
        f"{added:.1f}",
        added <= IMPORT_BAR,
        f"numpy {numpy:.0f} ms{remark(neighbours.share())}",
    )
    name = "size of the wheel, MB"
    wheel = session.options.wheel
    if wheel is None:
        yield missing(GROUP, name, "--wheel FILE.whl gives one")
        return
    size = wheel.stat().st_size / MEGABYTE
    yield Row(GROUP, name, f"< {WHEEL_BAR:g}", f"{size:.2f}", size < WHEEL_BAR, wheel.name)


def _import_ms() -> tuple[float, float]:
    """What NumPy takes, and what cbn takes after it, in one process."""
    # -P: the cbn that is installed, and not the sources of the checkout in which this runs
    command = [sys.executable, "-P", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    numpy, added = (float(seconds) * 1e3 for seconds in done.stdout.split())
    return numpy, added
