"""The cost of a small call."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.load import remark
from benchmarks.targets.base import Row, Session, missing

GROUP = "call"
SHAPE = (1, 64)
YARDSTICK = 5.0  # µs that session.run takes on the machine that the bars are stated for
BARS = {"cbn": 0.5, "cbn layer": 1.5, "cbn layer new": 1.5}
MEASURES = {
    "cbn": "ScaleShift with out=",
    "cbn layer": "layer in eval, with out=",
    "cbn layer new": "layer in eval, without out=",
}


def calls(session: Session) -> Iterator[Row]:
    """Calls on (1, 64) float32, with bars that move with the speed of the machine."""
    names = ("copy", "cbn new", "torch", "onnxruntime", "onnxruntime run", "numpy", *BARS)
    (result,) = session.measure("call", "first", names, shapes=[SHAPE])
    name = "onnxruntime run"
    run = result.timings[name].median if name in result.timings else None
    for name, bar in BARS.items():
        time = result.timings[name].median
        yield Row(
            GROUP,
            f"{MEASURES[name]} on (1, 64), µs, where session.run takes {YARDSTICK:g}",
            f"<= {bar:g}",
            f"{time:.2f}" if run is None else f"{time * YARDSTICK / run:.2f}",
            time <= bar if run is None else time * YARDSTICK / run <= bar,
            f"{time:.2f} here, session.run {'absent' if run is None else format(run, '.2f')}"
            + remark(result.neighbours),
        )
    if run is None:
        yield missing(GROUP, "session.run over ScaleShift", "onnxruntime is not installed")
