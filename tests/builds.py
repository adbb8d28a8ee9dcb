"""The builds of the kernels, each behind the public API of cbn in its turn."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cbn import _dispatch

USABLE = _dispatch.usable_isas()

#: One test for each build; what this machine lacks is skipped, and says so.
each_build = pytest.mark.parametrize(
    "isa",
    [
        pytest.param(
            isa,
            marks=pytest.mark.skipif(
                isa not in USABLE, reason=f"no build {isa!r}, or a processor that lacks it"
            ),
        )
        for isa in _dispatch.ISAS
    ],
)


@contextmanager
def running(isa: str) -> Iterator[Any]:
    """The module of one build, which serves batch_norm, batch_stats and the layers meanwhile.

    ``ScaleShift`` was derived from the class of the build that the process chose; its calls come
    here where they are not small and contiguous, or where they ask for two threads.
    """
    kernels = importlib.import_module(f"cbn.{_dispatch.ISAS[isa][0]}")
    own = [  # _dispatch, and all that took it from there
        module
        for name, module in sys.modules.items()
        if name.startswith("cbn.") and getattr(module, "kernels", None) is _dispatch.kernels
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in own:
            patch.setattr(module, "kernels", kernels)
        yield kernels
