"""How busy the machine was with other work."""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY = 0.05  # a larger share of the cores used by others makes a timing worthless


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


def remark(share: float | None) -> str:
    """Say that others were busy, or nothing."""
    return f" (others used {share:.0%} of the cores)" if is_busy(share) else ""


def is_busy(share: float | None) -> bool:
    """Whether others used too much for a timing to be trusted."""
    return share is not None and share > BUSY


def _clocks() -> tuple[float, float, float]:
    """Return seconds passed, seconds of processor that this process and the children that it has
    waited for used, and those all used."""
    spent = os.times()
    own = time.process_time() + spent.children_user + spent.children_system
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return time.monotonic(), own, 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return time.monotonic(), own, ticks / os.sysconf("SC_CLK_TCK")
