"""A plain copy: the line that memory draws."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from benchmarks.peers.base import Contender

SMALL = 64 * 1024  # bytes; below, a call through ctypes would cost more than the copy


class Copy(Contender):
    name = "copy"
    legend = "memcpy of x into a buffer in use, split over the threads (under 64 KB: np.copyto)"
    computes = False

    def prepare(self) -> Callable[[], object]:
        self._out = np.empty_like(self.data.x)
        self._out.fill(0)  # the pages exist before the clock runs
        if self.data.x.nbytes < SMALL:
            return functools.partial(np.copyto, self._out, self.data.x)
        library = compiled_copy()
        if library is None:
            return self._python_threads()
        to, source = self._out.ctypes.data, self.data.x.ctypes.data
        count = ctypes.c_size_t(self.data.x.nbytes)
        return functools.partial(
            library.parallel_copy,
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            count,
            ctypes.c_int(self.case.threads),
        )

    def output(self) -> np.ndarray:
        return self._out

    def _python_threads(self) -> Callable[[], object]:
        """Without a C compiler: np.copyto, which releases the interpreter lock, in threads."""
        if self.case.threads == 1:
            return functools.partial(np.copyto, self._out, self.data.x)
        parts = list(
            zip(
                np.array_split(self._out.reshape(-1), self.case.threads),
                np.array_split(self.data.x.reshape(-1), self.case.threads),
                strict=True,
            )
        )
        pool = ThreadPoolExecutor(self.case.threads)
        return lambda: wait([pool.submit(np.copyto, *part) for part in parts])


@functools.cache
def compiled_copy() -> ctypes.CDLL | None:
    """Compile copy.c with OpenMP; None where there is no such compiler."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "copy.so")
        source = Path(__file__).with_name("copy.c")
        command = ["cc", "-O2", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return ctypes.CDLL(str(library))
