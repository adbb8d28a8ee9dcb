"""The build of the kernels in use, and which of its specialisations serves which dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _kernels as kernels

__all__ = ["SPECIALISATIONS", "build_info", "kernel", "kernels"]

#: NumPy dtype -> the name that Cython gives the specialisation of a fused kernel.
SPECIALISATIONS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

_TABLE = {
    (name, dtype): getattr(kernels, name)[special]
    for name in (
        "stats_first",
        "stats_last",
        "train_first",
        "train_last",
        "scale_first",
        "scale_last",
    )
    for dtype, special in SPECIALISATIONS.items()
}


def kernel(name: str, layout: str, dtype: np.dtype[Any]) -> Any:
    """The compiled function ``{name}_{layout}`` for arrays of `dtype`."""
    return _TABLE[f"{name}_{layout}", dtype]


def build_info() -> dict[str, Any]:
    """How the kernels in use were built, and how many threads they take.

    Returns
    -------
    dict
        ``isa``: instruction set of the build in use ("baseline"); ``vector_bytes``: width of its
        vectors; ``openmp``: the compiler's OpenMP version as yyyymm, or None for a serial build;
        ``threads``: how many threads ``num_threads=None`` means for a large array.
    """
    from ._threads import available_threads

    built = kernels.build()
    return {
        "isa": "baseline",
        "vector_bytes": built["vector_bytes"],
        "openmp": built["openmp"] or None,
        "threads": available_threads(),
    }
