"""Evaluate a model before and after a rewrite, in every way that a proof asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from .files import ModelError
from .float64 import Nudge, find_narrow, widen
from .inputs import Feeds
from .sessions import Providers, make_session, run_session
from .taps import expose

__all__ = ["Bench", "Value"]

_NUDGES = (Nudge(0, coherent=False), Nudge(1, coherent=True), Nudge(2, coherent=False))

_HELD_BYTES = 128 << 20  # of intermediate values in float64 at once


@dataclasses.dataclass(eq=False)
class Value:
    """What is known of one value so far."""

    kind: str
    before: str
    after: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None
    largest: float = 0.0
    difference: float = 0.0
    moved: float = 0.0
    error: float = 0.0
    error_before: float = 0.0
    failure: str = ""
    unstable: bool = False
    incomparable: bool = False
    finite: bool = False


class Bench:
    """The two models, and how they are evaluated."""

    def __init__(
        self, before: ir.Model, after: ir.Model, providers: Providers, num_threads: int | None
    ) -> None:
        self.before, self.after = before, after
        self.providers, self.num_threads = providers, num_threads
        self.runs_as_written = True
        self.why_not = ""
        self.narrow: frozenset[str] | None = None
        try:
            # The same for both, so that a float32 operator costs both the same.
            self.narrow = find_narrow(before) | find_narrow(after)
        except ModelError as error:
            self.why_not = str(error)
        self.calculating = sum(1 for _ in before.graph)
        self.failure = ""
        try:
            make_session(before, providers, optimize=False, num_threads=num_threads)
        except ModelError as error:
            if self.narrow is None:
                raise
            self.runs_as_written, self.why_not = False, str(error)
            return
        try:
            make_session(after, providers, optimize=False, num_threads=num_threads)
        except ModelError as error:
            self.failure = f"the model before runs, the one after does not: {error}"

    @property
    def reference(self) -> str:
        """What the results are measured against, in words."""
        if self.narrow is None:
            return f"the model before as it runs unoptimized ({self.why_not})"
        if not self.runs_as_written:
            return f"a float64 evaluation alone ({self.why_not})"
        return "a float64 evaluation"

    def groups(
        self, values: list[Value], parts: list[Feeds]
    ) -> Iterator[tuple[list[Value], list[Feeds]]]:
        """Cut values so that what is held of them stays bounded; at least one batch of each."""
        if not values:
            return
        source = self.before if self.narrow is None else widen(self.before, self.narrow)
        tapped, outputs = expose(source, [value.before for value in values], shapes_only=True)
        session = make_session(tapped, self._home, optimize=False, num_threads=self.num_threads)
        shapes = run_session(session, self._feeds(parts[0]), list(outputs.values()))
        group: list[Value] = []
        held = 0
        for value in values:
            size = 8 * math.prod(map(int, shapes[outputs[value.before]]))
            if group and held + size > _HELD_BYTES:
                yield group, parts[: max(1, _HELD_BYTES // max(held, 1))]
                group, held = [], 0
            group.append(value)
            held += size
        yield group, parts[: max(1, _HELD_BYTES // max(held, 1))]

    def compare(self, values: list[Value], parts: list[Feeds]) -> None:
        """Evaluate both models in every way and note how far apart they are."""
        if not values:
            return
        reference = self._reference_values(values, parts)
        self._float64(values, parts, reference)
        if self.runs_as_written:
            self._as_written(values, parts, reference, optimize=False)
            # A value that is taken out cannot be optimized away: outputs alone are run so.
            outputs = [index for index, value in enumerate(values) if value.kind == "output"]
            chosen = [[batch[index] for index in outputs] for batch in reference]
            self._as_written([values[index] for index in outputs], parts, chosen, optimize=True)

    def _reference_values(self, values: list[Value], parts: list[Feeds]) -> list[list[Any]]:
        names = [value.before for value in values]
        model = self.before if self.narrow is None else widen(self.before, self.narrow)
        results = list(self._evaluate(model, names, parts))
        for batch in results:
            for value, array in zip(values, batch, strict=True):
                if not isinstance(array, np.ndarray):
                    value.incomparable = True
                    continue
                value.shape = value.shape or array.shape
                if array.dtype.kind == "f":
                    value.largest = max(value.largest, _largest(array))
                    value.finite = value.finite or bool(np.isfinite(array).any())
                else:
                    value.finite = True
        return results

    def _float64(self, values: list[Value], parts: list[Feeds], reference: list[list[Any]]) -> None:
        if self.narrow is None:
            return
        new = self._evaluate(
            widen(self.after, self.narrow), [value.after for value in values], parts
        )
        for value, distance in _distances(values, reference, new):
            value.difference = max(value.difference, distance)
        for nudge in _NUDGES:
            moved = widen(self.before, self.narrow, nudge)
            results = self._evaluate(moved, [value.before for value in values], parts)
            for value, distance in _distances(values, reference, results):
                value.moved = max(value.moved, distance)

    def _as_written(
        self, values: list[Value], parts: list[Feeds], reference: list[list[Any]], *, optimize: bool
    ) -> None:
        if not values:
            return
        for model, which in ((self.before, "before"), (self.after, "after")):
            names = [getattr(value, which) for value in values]
            field = "error" if which == "after" else "error_before"
            tapped, outputs = expose(model, names)
            session = make_session(
                tapped, self.providers, optimize=optimize, num_threads=self.num_threads
            )
            first: list[Any] = []
            for index, feeds in enumerate([*parts, parts[0]]):
                results = run_session(session, feeds, list(dict.fromkeys(outputs.values())))
                arrays = [results[outputs[name]] for name in names]
                if index == len(parts):
                    self._again(values, first, arrays, which)
                    continue
                first = first or arrays
                for value, array, expected in zip(values, arrays, reference[index], strict=True):
                    if value.dtype is None and isinstance(array, np.ndarray):
                        value.dtype = array.dtype
                    distance = _distance(array, expected)
                    setattr(value, field, max(getattr(value, field), distance))

    @staticmethod
    def _again(values: list[Value], first: list[Any], second: list[Any], which: str) -> None:
        for value, one, two in zip(values, first, second, strict=True):
            if _distance(two, one) == 0:
                continue
            if which == "before":
                value.unstable = True
            else:
                value.failure = (
                    "two runs on the same input differ: a random operator, or a state that "
                    "onnxruntime keeps in initializers (onnxruntime#29790)"
                )

    @property
    def _home(self) -> Providers:
        return self.providers if self.narrow is None else "cpu"

    def _feeds(self, feeds: Feeds) -> Feeds:
        if self.narrow is None:
            return feeds
        floats = ("f", "V")  # V: bfloat16
        return {
            name: array.astype(np.float64) if array.dtype.kind in floats else array
            for name, array in feeds.items()
        }

    def _evaluate(
        self, model: ir.Model, names: list[str], parts: list[Feeds]
    ) -> Iterator[list[Any]]:
        tapped, outputs = expose(model, names)
        session = make_session(tapped, self._home, optimize=False, num_threads=self.num_threads)
        wanted = list(dict.fromkeys(outputs.values()))
        for feeds in parts:
            results = run_session(session, self._feeds(feeds), wanted)
            yield [results[outputs[name]] for name in names]


def _distances(
    values: list[Value], reference: list[list[Any]], results: Iterator[list[Any]]
) -> Iterator[tuple[Value, float]]:
    for expected, actual in zip(reference, results, strict=True):
        for value, one, two in zip(values, expected, actual, strict=True):
            yield value, _distance(two, one)


def _distance(actual: Any, expected: Any) -> float:
    """The largest difference; for what is no floating-point array, how many elements differ."""
    if not isinstance(actual, np.ndarray) or not isinstance(expected, np.ndarray):
        return 0.0  # such a value does not hold anyway
    if actual.shape != expected.shape:
        return math.inf
    if expected.dtype.kind not in "fV":
        return float(np.count_nonzero(actual != expected))
    if not actual.size:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        one, two = actual.astype(np.float64), expected.astype(np.float64)
        apart = np.abs(one - two)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    apart[same] = 0
    apart[np.isnan(apart)] = math.inf
    return float(apart.max())


def _largest(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max(initial=0))
