"""A plain copy: the line that memory draws."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from benchmarks.cases import buffer_like
from benchmarks.measure import Statement
from benchmarks.peers.base import Contender
from benchmarks.peers.compiled import compile_c

SMALL = 64 * 1024  # bytes; below, a call through ctypes would cost more than the copy


class Copy(Contender):
    name = "copy"
    family = "copy"
    legend = "memcpy of x into a buffer in use, split over the threads (under 64 KB: np.copyto)"
    modes = frozenset({"train", "eval", "backward", "call"})
    computes = False

    def prepare(self) -> Statement:
        x = self.data.x
        self._out = buffer_like(x)
        if x.nbytes < SMALL:
            return Statement("f(y, x)", f=np.copyto, y=self._out, x=x)
        library = compiled_copy()
        if library is None:
            return self._python_threads()
        return Statement(
            "f(y, x, nbytes, threads)",
            f=library.parallel_copy,
            y=ctypes.c_void_p(self._out.ctypes.data),
            x=ctypes.c_void_p(x.ctypes.data),
            nbytes=ctypes.c_size_t(x.nbytes),
            threads=ctypes.c_int(self.case.threads),
        )

    def output(self) -> np.ndarray:
        return self._out

    def _python_threads(self) -> Statement:
        """Without a C compiler: np.copyto, which releases the interpreter lock, in threads."""
        threads = self.case.threads
        sources = np.array_split(self.data.x.reshape(-1), threads)
        targets = np.array_split(self._out.reshape(-1), threads)
        pairs = list(zip(targets, sources, strict=True))
        return Statement(
            "wait([submit(copy, *pair) for pair in pairs])",
            wait=wait,
            submit=ThreadPoolExecutor(threads).submit,
            copy=np.copyto,
            pairs=pairs,
        )


def compiled_copy() -> ctypes.CDLL | None:
    """Return copy.c as a library; None where there is no C compiler with OpenMP."""
    return compile_c("copy.c")
