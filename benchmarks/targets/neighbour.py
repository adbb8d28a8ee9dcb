"""Calls beside another process that keeps a core busy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.cases import LAYOUTS, MODES, Case, make_data
from benchmarks.load import Neighbours, remark
from benchmarks.measure import sample, sample_size, settle, summarize
from benchmarks.peers.cbn_layers import Cbn
from benchmarks.run import progress
from benchmarks.targets.base import Row, Session, missing

GROUP = "neighbour"
MEASURE = "time beside a busy process over quiet time, arrays up to 1 MB, most"
SHAPES = (  # 256 bytes to 1 MiB
    (1, 64),
    (256, 1024),
    (1, 64, 56, 56),
    (32, 64, 8, 8),
    (8, 32, 31, 31),
)
BAR = 2.0
QUIET_SECONDS = 0.5  # of looking on, before there is a neighbour of our own


def neighbour(session: Session) -> Iterator[Row]:
    """Take turns: a sample with the process stopped, a sample with it at full load."""
    if not hasattr(signal, "SIGSTOP"):
        yield missing(GROUP, MEASURE, "this system cannot stop and continue a process")
        return
    neighbours = Neighbours()
    time.sleep(QUIET_SECONDS)
    disturbed = remark(neighbours.share())
    worst = (0.0, "")
    with _busy_process() as process:
        for case in _cases(session):
            progress(f"{case} beside a busy process")
            timer = Cbn(case, make_data(case)).prepare().timer()
            repeats = sample_size(timer)
            samples: dict[int, list[float]] = {signal.SIGSTOP: [], signal.SIGCONT: []}
            for _ in range(session.options.rounds):
                for state, values in samples.items():
                    os.kill(process.pid, state)
                    if state == signal.SIGSTOP:
                        settle()
                    values.append(sample(timer, repeats))
            quiet, busy = (summarize(values).median for values in samples.values())
            worst = max(worst, (busy / quiet, str(case)))
    yield Row(
        GROUP, MEASURE, f"<= {BAR:g}", f"{worst[0]:.2f}", worst[0] <= BAR, worst[1] + disturbed
    )


def _cases(session: Session) -> Iterator[Case]:
    for shape in SHAPES:
        for mode in MODES:
            for layout in LAYOUTS:
                case = Case(shape, "float32", layout, mode, session.options.threads)
                if mode in ("train", "backward") and shape[0] == 1 and len(shape) == 2:
                    continue  # one value a channel
                yield case


@contextlib.contextmanager
def _busy_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
