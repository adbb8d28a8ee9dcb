"""16-bit types: against cbn's own float32, and against PyTorch."""

from __future__ import annotations

import gc
import importlib.util
import math
from collections.abc import Iterator

from benchmarks.cases import LAYOUTS, Case, Layout, make_data
from benchmarks.load import Neighbours, remark
from benchmarks.measure import measure
from benchmarks.peers.cbn_layers import Cbn
from benchmarks.run import progress
from benchmarks.targets import base
from benchmarks.targets.base import MEGABYTE, Row, Session, at_least, fastest_over_cbn, missing

GROUP = "16-bit"
BAR = 1.6


def sixteen(session: Session) -> Iterator[Row]:
    """Eval in less time than float32; training in less than PyTorch."""
    dtypes = ["float16"]
    if importlib.util.find_spec("ml_dtypes") is None:
        yield missing(GROUP, "bfloat16", "ml_dtypes is not installed")
    else:
        dtypes.append("bfloat16")
    for layout in LAYOUTS:
        yield from _eval_rows(session, layout, dtypes)
    for dtype in dtypes:
        for layout in LAYOUTS:
            names = ("copy", "cbn", "cbn new", "torch", "torch out=")
            yield at_least(
                GROUP,
                f"training {base.LAYOUTS[layout]} {dtype}: times as fast as the fastest form of "
                "PyTorch, least",
                session.measure("train", layout, names, dtype),
                fastest_over_cbn("PyTorch"),
                lambda case: 1.0,
                strict=True,
            )


def _eval_rows(session: Session, layout: Layout, dtypes: list[str]) -> Iterator[Row]:
    """Compare the types in one run. The size that counts is that of the float32 array."""
    worst: dict[str, tuple[float, str]] = {}
    for shape in session.shapes:
        if math.prod(shape) * 4 < 16 * MEGABYTE:
            continue
        contenders = {}
        for dtype in ("float32", *dtypes):
            case = Case(shape, dtype, layout, "eval", session.options.threads)
            contenders[dtype] = Cbn(case, make_data(case))
        progress(f"{case.name} in each type, channels {layout}")
        calls = {dtype: contender.prepare() for dtype, contender in contenders.items()}
        neighbours = Neighbours()
        times = measure(calls, session.options.rounds)
        name = case.name + remark(neighbours.share())
        for dtype in dtypes:
            ratio = times["float32"].median / times[dtype].median
            worst[dtype] = min(worst.get(dtype, (math.inf, "")), (ratio, name))
        del contenders, calls
        gc.collect()
    for dtype in dtypes:
        name = (
            f"eval {base.LAYOUTS[layout]} {dtype}: times as fast as own float32, from 16 MB, least"
        )
        if dtype not in worst:
            yield missing(GROUP, name)
            continue
        ratio, shape_name = worst[dtype]
        yield Row(GROUP, name, f">= {BAR}", f"{ratio:.2f}", ratio >= BAR, shape_name)
