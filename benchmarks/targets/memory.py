"""The memory that a call on 100 MB takes beyond its arrays, each in a process of its own.

Run as ``python -m benchmarks.targets.memory MODE LAYOUT DTYPE THREADS``, it prints the bytes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases import DTYPES, LAYOUTS, MODES, Case, make_data
from benchmarks.peers.cbn_layers import Cbn
from benchmarks.run import progress
from benchmarks.targets.base import MEGABYTE, Row, Session, missing

GROUP = "memory"
MODULE = "benchmarks.targets.memory"
SIZES = {2: (64, 256, 56, 56), 4: (32, 256, 56, 56), 8: (16, 256, 56, 56)}  # by bytes a value


def memory(session: Session) -> Iterator[Row]:
    """Take the largest over the modes, layouts and types."""
    threads = session.options.threads
    name = f"peak extra memory of the first call on 100 MB with out=, {threads} threads, MB"
    worst = (-1.0, "")
    for mode in MODES[:3]:
        for layout in LAYOUTS:
            for dtype in DTYPES[:3]:
                what = f"{mode}, channels {layout}, {dtype}"
                progress(f"memory of {what}")
                command = [sys.executable, "-m", MODULE, mode, layout, dtype, str(threads)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    lines = done.stderr.strip().splitlines() or ["no reason given"]
                    yield missing(GROUP, f"{name}, {what}", lines[-1])
                    continue
                worst = max(worst, (int(done.stdout) / MEGABYTE, what))
    if worst[1]:
        yield Row(GROUP, name, f"< {threads}", f"{worst[0]:.2f}", worst[0] < threads, worst[1])


def extra_bytes(mode: str, layout: str, dtype: str, threads: int) -> int:
    """Return how far the peak of resident memory rises during a first call."""
    item = Case((1, 1), dtype, "first", "eval", 1).nbytes
    case = Case(SIZES[item], dtype, layout, mode, threads)  # type: ignore[arg-type]
    data = make_data(case)
    timer = Cbn(case, data).prepare().timer()
    timer.timeit(0)  # compiles the statement
    _reset_peak()
    before = _status("VmRSS")
    timer.timeit(1)
    return _status("VmHWM") - before


def _reset_peak() -> None:
    # 5 sets the peak to what is resident now: making the arrays took more than the call will.
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    mode, layout, dtype, threads = sys.argv[1:]
    print(extra_bytes(mode, layout, dtype, int(threads)))
