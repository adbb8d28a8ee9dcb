"""How busy the machine was with other work: a busy neighbour makes a timing worthless."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Neighbours:
    """Measures the share of all cores that went to others since it was made."""

    def __init__(self) -> None:
        self._start = _clocks()

    def share(self) -> float | None:
        """Return a fraction from 0 to 1; None where the system does not tell (no /proc/stat)."""
        wall, own, everyone = (
            stop - start for stop, start in zip(_clocks(), self._start, strict=True)
        )
        if everyone <= 0:
            return None
        return max(0.0, everyone - own) / (wall * (os.cpu_count() or 1))


def _clocks() -> tuple[float, float, float]:
    """Return seconds passed, seconds of processor this process used, and those all used."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return time.monotonic(), time.process_time(), 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return time.monotonic(), time.process_time(), ticks / os.sysconf("SC_CLK_TCK")
