"""Synchronised batch norm: processes share a batch, and normalize it as one process would.

    mpiexec -n 4 python examples/sync_batch_norm.py    # with mpi4py
    python examples/sync_batch_norm.py                 # two processes of multiprocessing

Each process sends 1 + 3 C numbers in the forward pass and 2 C in the backward pass.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import cbn

CHANNELS = 8
SIZES = (5, 9, 2, 16)  # images of each process; the fifth has as many as the first, and so on

#: Takes an array of this process, returns those of all, in the order of their ranks.
AllGather = Callable[[np.ndarray], list[np.ndarray]]


def sync_forward(
    bn: cbn.BatchNorm2d, x: np.ndarray, allgather: AllGather
) -> tuple[np.ndarray, cbn.BatchStats]:
    """A training forward of this process's part of the batch, and the statistics of the whole."""
    parts = allgather(cbn.batch_stats(x).to_array())
    stats = sum(map(cbn.BatchStats.from_array, parts[1:]), cbn.BatchStats.from_array(parts[0]))
    bn.track(stats)
    y = cbn.batch_norm(x, stats.mean, stats.var, bn.weight, bn.bias, eps=bn.eps)
    return y, stats


def sync_backward(
    bn: cbn.BatchNorm2d,
    dy: np.ndarray,
    x: np.ndarray,
    stats: cbn.BatchStats,
    allgather: AllGather,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient of this process's part, and of weight and bias over the whole batch."""
    rstd = 1 / np.sqrt(stats.var + bn.eps)
    weight = np.asarray(bn.weight, np.float64)
    # dy * weight * rstd, and the sums over this part; then what comes by way of the statistics.
    direct, *sums = cbn.batch_norm_backward(dy, x, weight, stats.mean, rstd, training=False)
    dweight, dbias = np.sum(allgather(np.stack(sums)), axis=0)
    scale = -weight * rstd / stats.count
    through_statistics = cbn.ScaleShift(stats.mean, scale * rstd * dweight, scale * dbias)
    dx = through_statistics(x, out=direct, residual=direct)
    return dx, dweight.astype(bn.dtype), dbias.astype(bn.dtype)


def check(rank: int, ranks: int, allgather: AllGather) -> bool:
    """Whether one training step, shared out, is that of one process with the whole batch."""
    sizes = [SIZES[at % len(SIZES)] for at in range(ranks)]
    begin, size = sum(sizes[:rank]), sizes[rank]
    rng = np.random.default_rng(0)  # the same whole batch everywhere, to compare with
    x, dy = rng.normal(3, 2, (2, sum(sizes), CHANNELS, 14, 14)).astype(np.float32)
    one, shared = cbn.BatchNorm2d(CHANNELS), cbn.BatchNorm2d(CHANNELS)
    one.weight = shared.weight = rng.uniform(0.5, 1.5, CHANNELS)

    mine = slice(begin, begin + size)
    y, stats = sync_forward(shared, x[mine], allgather)
    gradient = sync_backward(shared, dy[mine], x[mine], stats, allgather)

    expected = {"y": one(x)[mine]}
    dx, expected["dweight"], expected["dbias"] = one.backward(dy)
    expected |= {"dx": dx[mine], "running_mean": one.running_mean, "running_var": one.running_var}
    got = {"y": y, "running_mean": shared.running_mean, "running_var": shared.running_var}
    got |= dict(zip(("dx", "dweight", "dbias"), gradient, strict=True))
    worst = [float(np.max(np.abs(got[name] - expected[name]))) for name in expected]
    worst = np.max(allgather(np.array(worst)), axis=0)
    limits = [4 * np.spacing(np.max(np.abs(value))) for value in expected.values()]
    if rank == 0:
        print(f"{sum(sizes)} images over {ranks} processes ({', '.join(map(str, sizes))})")
        for name, error in zip(expected, worst, strict=True):
            print(f"  {name:<13} largest difference from one process: {error:.1e}")
    return bool(np.all(allgather(np.array([np.all(worst <= limits)], np.float64))))


class SharedRows:
    """What MPI's allgather does, for the processes of multiprocessing."""

    def __init__(self, context: Any, ranks: int, room: int = 1 + 3 * CHANNELS) -> None:
        self._rows = [context.Array("d", room, lock=False) for _ in range(ranks)]
        self._barrier = context.Barrier(ranks, timeout=60)

    def of(self, rank: int) -> AllGather:
        """The function for the process of this rank."""

        def allgather(array: np.ndarray) -> list[np.ndarray]:
            np.frombuffer(self._rows[rank])[: array.size] = array.reshape(-1)
            self._barrier.wait()  # all have written
            rows = [np.frombuffer(row)[: array.size].reshape(array.shape) for row in self._rows]
            rows = [row.copy() for row in rows]
            self._barrier.wait()  # all have read
            return rows

        return allgather


def work(rank: int, ranks: int, rows: SharedRows) -> None:
    """The main function of a process of multiprocessing."""
    sys.exit(0 if check(rank, ranks, rows.of(rank)) else 1)


def main() -> int:
    """Run the check over MPI's processes if there are several, else over two of our own."""
    try:
        from mpi4py import MPI
    except ImportError:
        ranks = 1
    else:
        ranks = MPI.COMM_WORLD.Get_size()
    if ranks > 1:
        rank = MPI.COMM_WORLD.Get_rank()
        holds = check(rank, ranks, MPI.COMM_WORLD.allgather)
    else:
        # spawn: a forked child would inherit the locks, but not the threads, of its parent
        context, rank, ranks = multiprocessing.get_context("spawn"), 0, 2
        rows = SharedRows(context, ranks)
        processes = [context.Process(target=work, args=(at, ranks, rows)) for at in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        holds = all(process.exitcode == 0 for process in processes)
    if rank == 0:
        print("equal to a single process" if holds else "NOT equal to a single process", flush=True)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
