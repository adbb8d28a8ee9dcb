"""What is in use: for bug reports, and `cbn info`."""

from __future__ import annotations

from typing import Any

from ._dispatch import isa, kernels, usable_isas
from ._threads import available_threads

__all__ = ["build_info"]


def build_info() -> dict[str, Any]:
    """How the kernels in use were built, and how many threads they take.

    Returns
    -------
    dict
        ``isa``: instruction set of the build in use, "baseline", "v3" (AVX2, FMA, F16C) or "v4"
        (AVX-512), chosen for this processor unless the environment variable ``CBN_ISA`` names one;
        ``isas``: the builds that this processor can run; ``vector_bytes``: width of the vectors;
        ``threaded``: whether the kernels can use threads; False for a serial build;
        ``threads``: how many threads ``num_threads=None`` means for a large array.
    """
    built = kernels.build()
    return {
        "isa": isa,
        "isas": usable_isas(),
        "vector_bytes": built["vector_bytes"],
        "threaded": built["threads"],
        "threads": available_threads(),
    }
