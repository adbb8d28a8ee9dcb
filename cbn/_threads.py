"""How many threads a call takes: the one place where that is decided."""

from __future__ import annotations

import functools
import math
import operator
import os
from typing import NamedTuple

from ._dispatch import kernels

__all__ = ["ThreadRule", "available_threads", "check_num_threads", "thread_rule", "threads_for"]

#: Arrays up to this size are the work of one thread: waking a second costs what it would save.
SERIAL_BYTES = 1 << 18

_MOST_THREADS = max(8, 2 * (os.cpu_count() or 1))
_UNLIMITED = 1 << 15
_THREADED = bool(kernels.build()["threads"])


def check_num_threads(num_threads: int | None) -> int | None:
    """Return `num_threads` as an int of at least 1, or None; raise what says what is accepted."""
    if num_threads is None:
        return None
    try:
        count = operator.index(num_threads)
    except TypeError:
        raise TypeError(
            f"num_threads: expected None or an int, got {type(num_threads).__name__}"
        ) from None
    if count < 1:
        raise ValueError(f"num_threads: expected None or an int >= 1, got {count}")
    return count


def _read(path: str) -> str:
    with open(path) as file:  # pathlib alone would be a third of the import time
        return file.read()


@functools.cache
def _quota() -> int | None:
    """The processors that the control group allows (version 2, then 1), or None."""
    try:
        quota, period = _read("/sys/fs/cgroup/cpu.max").split()[:2]
    except (OSError, ValueError):
        try:
            quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
            period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
        except OSError:
            return None
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return max(1, math.ceil(share)) if share > 0 else None


@functools.cache
def _omp_num_threads() -> int | None:
    """``OMP_NUM_THREADS`` as it was when first asked, as OpenMP reads it; its first level."""
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    except (KeyError, ValueError):
        return None


@functools.cache
def _most() -> int:
    """What the machine, the control group's quota and ``OMP_NUM_THREADS`` allow."""
    return min(os.cpu_count() or 1, _quota() or _UNLIMITED, _omp_num_threads() or _UNLIMITED)


def available_threads() -> int:
    """What CPU affinity, the control group's quota and ``OMP_NUM_THREADS`` allow, at least 1."""
    if not _THREADED:
        return 1
    return min(kernels.processors() or os.cpu_count() or 1, _most())


class ThreadRule(NamedTuple):
    """How many threads a compiled call takes, given the bytes of x.

    One for arrays up to `serial_bytes`; for larger ones what the affinity of the moment allows, but
    not more than `most`; or `most` itself, where it is `fixed`.
    """

    serial_bytes: int
    most: int
    fixed: bool


@functools.lru_cache(maxsize=64)
def thread_rule(num_threads: int | None) -> ThreadRule:
    """The rule for `num_threads`, checked before: an int is obeyed, but not beyond twice the
    processors, or 8."""
    if num_threads is None:
        return ThreadRule(SERIAL_BYTES, _most() if _THREADED else 1, False)
    return ThreadRule(0, min(num_threads, _MOST_THREADS), True)


def threads_for(num_threads: int | None, nbytes: int) -> int:
    """Threads for a call on `nbytes` of x, by the same rule."""
    rule = thread_rule(num_threads)
    if nbytes <= rule.serial_bytes:
        return 1
    return rule.most if rule.fixed else available_threads()
