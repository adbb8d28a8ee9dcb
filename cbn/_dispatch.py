"""The build of the kernels in use, and how arrays of each dtype enter it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _cpu

__all__ = [
    "ISAS",
    "Element",
    "accepted_dtypes",
    "element_of",
    "isa",
    "kernels",
    "run",
    "usable_isas",
]

#: Name of a build -> its module and the level of x86-64 that it needs, the best last.
ISAS = {"baseline": ("_kernels", 1), "v3": ("_kernels_v3", 3), "v4": ("_kernels_v4", 4)}


def usable_isas() -> list[str]:
    """The builds that exist and that this processor can run, the best last."""
    level = _cpu.level()
    return [
        isa
        for isa, (module, needs) in ISAS.items()
        if needs <= level and importlib.util.find_spec(f"{__package__}.{module}") is not None
    ]


def _choose() -> str:
    usable = usable_isas()
    asked = os.environ.get("CBN_ISA")
    if not asked:
        return usable[-1]
    if asked not in ISAS:
        raise ImportError(f"CBN_ISA: expected one of {', '.join(ISAS)}, got {asked!r}")
    if asked not in usable:
        raise ImportError(
            f"CBN_ISA={asked}: this processor, or this build of cbn, has {', '.join(usable)} only"
        )
    return asked


isa = _choose()
kernels: Any = importlib.import_module(f"{__package__}.{ISAS[isa][0]}")


class Element(NamedTuple):
    """How the kernels take an element type."""

    special: str  # the name that Cython gives the specialisation
    brain: bool  # bfloat16, in the specialisation that it shares with float16
    storage: np.dtype[Any] | None  # what to view the array as
    single: bool  # the arithmetic is done in float32


_ELEMENTS = {
    np.dtype(np.float32): Element("float", False, None, True),
    np.dtype(np.float64): Element("double", False, None, False),
    np.dtype(np.float16): Element("ushort", False, np.dtype(np.uint16), True),
}
_BFLOAT16 = Element("ushort", True, np.dtype(np.uint16), True)


def run(
    name: str,
    layout: str,
    arrays: Sequence[np.ndarray | None],
    others: Sequence[Any],
    num_threads: int,
) -> None:
    """Call the kernel `name` on arrays of one element type, all in one layout."""
    first = arrays[0]
    assert first is not None
    element = element_of(first.dtype)
    assert element is not None
    if element.storage is not None:
        arrays = [None if array is None else array.view(element.storage) for array in arrays]
    getattr(kernels, name)[element.special](
        *arrays, *others, layout == "last", element.brain, num_threads
    )


def accepted_dtypes() -> str:
    """The dtypes of x, for messages."""
    return "float16, bfloat16, float32 or float64"


def element_of(dtype: np.dtype[Any]) -> Element | None:
    """How the kernels take `dtype`, or None if they do not."""
    element = _ELEMENTS.get(dtype)
    # NumPy has no bfloat16; the one that ml_dtypes registers is known by its name.
    if element is None and dtype.name == "bfloat16" and dtype.itemsize == 2 and dtype.isnative:
        return _BFLOAT16
    return element
