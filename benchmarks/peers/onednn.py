"""oneDNN itself, from PyPI's onednn-devel-cpu-gomp, without a framework's cost around it."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import math
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.cases import EPS, Case, aligned, buffer_like
from benchmarks.measure import Statement
from benchmarks.peers.base import Contender, Unsupported
from benchmarks.peers.compiled import compile_c

HEADERS, LIBRARY = "onednn-devel-cpu-gomp", "onednn-cpu-gomp"
KINDS = {"eval": 0, "train": 1, "backward": 2}  # the enum in onednn.c
TYPES = {"float16": 1, "bfloat16": 2, "float32": 3}  # dnnl_data_type_t


class Buffers(ctypes.Structure):
    """The struct of that name in onednn.c."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        (name, ctypes.c_void_p)
        for name in ("x", "y", "dy", "mean", "variance", "scale", "shift", "dscale", "dshift")
    ]


@functools.cache
def onednn() -> ctypes.CDLL | None:
    """Compile onednn.c against the installed library; None where that is not possible."""
    header, shared = _installed(HEADERS, "dnnl.h"), _installed(LIBRARY, "libdnnl.so")
    if header is None or shared is None:
        return None
    library = compile_c(
        "onednn.c",
        f"-I{header.parent}",
        f"-L{shared.parent}",
        "-ldnnl",
        f"-Wl,-rpath,{shared.parent}",
    )
    if library is not None:
        library.onednn_new.restype = ctypes.c_void_p
    return library


def _installed(package: str, name: str) -> Path | None:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())).resolve() for file in files if file.name == name]
    return min((path for path in found if path.exists()), key=lambda p: len(p.parts), default=None)


class OneDnnLast(Contender):
    name = "oneDNN NHWC"
    family = "oneDNN"
    legend = (
        "oneDNN's primitive into a buffer in use, channels last, for which it has a JIT (with "
        "channels first: on a copy of x in its layout); it moves no running statistics"
    )
    modes = frozenset({"train", "eval", "backward"})
    dtypes = frozenset(TYPES)
    last: ClassVar[bool] = True

    @classmethod
    def installed(cls) -> bool:
        return onednn() is not None

    def prepare(self) -> Statement:
        library = onednn()
        assert library is not None
        case, data = self.case, self.data
        self._out = buffer_like(self._arranged(data.x))
        zeros = functools.partial(np.zeros, case.channels, np.float32)
        arrays: dict[str, np.ndarray] = {
            "x": self._arranged(data.x),
            "y": self._out,
            "mean": data.running_mean.copy(),
            "variance": data.running_var.copy(),
            "scale": data.weight,
            "shift": data.bias,
            "dscale": zeros(),
            "dshift": zeros(),
        }
        if data.gradient is not None:
            arrays["dy"] = self._arranged(data.gradient.dy)
            arrays["mean"], arrays["variance"] = data.gradient.mean, data.gradient.var
        self._keep = arrays
        sizes = (*case.shape[:2], *_two(case.shape[2:]))
        text = ctypes.create_string_buffer(64)
        pointers = {name: array.ctypes.data for name, array in arrays.items()}
        operation = library.onednn_new(
            KINDS[case.mode],
            (ctypes.c_int64 * 4)(*sizes),
            int(self.last),
            TYPES[case.dtype],
            ctypes.c_float(EPS),
            ctypes.byref(Buffers(**pointers)),
            case.threads,
            text,
            ctypes.c_size_t(len(text)),
        )
        if not operation:
            raise Unsupported(f"oneDNN has no kernel for {case}")
        self.kernel = text.value.decode()
        operation = ctypes.c_void_p(operation)
        weakref.finalize(self, library.onednn_free, operation)
        return Statement("f(operation)", f=library.onednn_run, operation=operation)

    def output(self) -> np.ndarray:
        case = self.case
        if self.last == (case.layout == "last"):
            return self._out
        return np.moveaxis(self._out, -1, 1)

    def _arranged(self, array: np.ndarray) -> np.ndarray:
        """Return x or dy in the kernel's own layout."""
        if self.last == (self.case.layout == "last"):
            return array
        return aligned(np.moveaxis(array, 1, -1))


class OneDnnFirst(OneDnnLast):
    name = "oneDNN NCHW"
    legend = "the same, channels first"
    last = False

    @classmethod
    def takes(cls, case: Case) -> bool:
        # One value a channel and sample is the same in both layouts, and oneDNN's cache of
        # primitives would then hand out the slower kernel for the other layout too.
        one = math.prod(case.shape[2:]) == 1
        return super().takes(case) and case.layout == "first" and not one


def _two(sizes: tuple[int, ...]) -> tuple[int, int]:
    """See the axes after the channels as two, which the kernels for (N, C, H, W) take."""
    return (sizes[0] if len(sizes) > 1 else 1), math.prod(sizes[1:] if len(sizes) > 1 else sizes)
