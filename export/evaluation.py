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

Spread = np.ndarray[Any, np.dtype[np.float64]]
"""The largest of each channel (axis 1) of a value of rank 2 or more, else one number: (C,)."""

_NUDGES = (Nudge(0, coherent=False), Nudge(1, coherent=True), Nudge(2, coherent=False))

_LACKS_KERNEL = "Could not find an implementation"  # onnxruntime's words

_HELD_BYTES = 128 << 20  # of intermediate values in float64 at once


@dataclasses.dataclass(eq=False)
class Value:
    """What is known of one value so far.

    `largest`, `difference` and `moved` are kept for each channel, as ``Spread`` says.
    """

    kind: str
    before: str
    after: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None
    largest: Spread | None = None
    difference: Spread | None = None
    moved: Spread | None = None
    error: float = 0.0
    error_before: float = 0.0
    failure: str = ""
    unstable: bool = False
    incomparable: bool = False
    finite: bool = False

    def note(self, field: str, spread: Spread) -> None:
        """Join what one batch showed to `largest`, `difference` or `moved`."""
        known = getattr(self, field)
        if known is not None and known.shape != spread.shape:  # as many channels as a batch has
            known, spread = known.max(keepdims=True), spread.max(keepdims=True)
        setattr(self, field, spread if known is None else np.maximum(known, spread))

    def spreads(self) -> tuple[Spread, Spread, Spread]:
        """Return `largest`, `difference` and `moved`, of one shape; 0 for what is not known."""
        found = [self.largest, self.difference, self.moved]
        shapes = {spread.shape for spread in found if spread is not None}
        if len(shapes) != 1:
            found = [None if f is None else f.max(keepdims=True) for f in found]
        zero = np.zeros(shapes.pop() if len(shapes) == 1 else 1)
        largest, difference, moved = (zero if f is None else f for f in found)
        return largest, difference, moved


class Bench:
    """The two models, and how they are evaluated."""

    def __init__(
        self, before: ir.Model, after: ir.Model, providers: Providers, num_threads: int | None
    ) -> None:
        self.before, self.after = before, after
        self.providers, self.num_threads = providers, num_threads
        self.runs = {"before": True, "after": True}  # in their own types, on this provider
        self.why_not = ""
        self.narrow: frozenset[str] | None = None
        self.calculating = sum(1 for _ in before.graph)
        self.failure = ""
        first: frozenset[str] | None = None
        try:
            first = find_narrow(before)
            # The same for both, so that a float32 operator costs both the same.
            self.narrow = first | find_narrow(after)
        except ModelError as error:
            self.why_not = str(error)
        try:
            make_session(before, providers, optimize=False, num_threads=num_threads)
        except ModelError as error:
            if first is None:
                raise
            if self.narrow is None:
                self.failure = f"the model before does not run; as to the one after, {self.why_not}"
                return
            self.runs["before"], self.why_not = False, str(error)
        try:
            make_session(after, providers, optimize=False, num_threads=num_threads)
            # onnxruntime's Python interface neither takes nor gives bfloat16.
            if not self.runs["before"]:
                self.runs["after"] = not _has_bfloat16(after)
        except ModelError as error:
            if self.runs["before"]:
                self.failure = f"the model before runs, the one after does not: {error}"
            elif _LACKS_KERNEL in str(error):  # as the model before may: the provider's want
                self.runs["after"] = False
            else:
                self.failure = f"neither model runs, and the one after is at fault: {error}"

    @property
    def reference(self) -> str:
        """What the results are measured against, in words."""
        if self.narrow is None:
            return f"the model before as it runs unoptimized ({self.why_not})"
        if not self.runs["before"] and self.runs["after"]:
            return f"a float64 evaluation, as the model before does not run ({self.why_not})"
        if not self.runs["before"]:
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
        if any(self.runs.values()):
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
                    finite = np.where(np.isfinite(array), np.abs(array), 0)
                    value.note("largest", _by_channel(finite.astype(np.float64)))
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
            value.note("difference", distance)
        for nudge in _NUDGES:
            moved = widen(self.before, self.narrow, nudge)
            results = self._evaluate(moved, [value.before for value in values], parts)
            for value, distance in _distances(values, reference, results):
                value.note("moved", distance)

    def _as_written(
        self, values: list[Value], parts: list[Feeds], reference: list[list[Any]], *, optimize: bool
    ) -> None:
        if not values:
            return
        for model, which in ((self.before, "before"), (self.after, "after")):
            if not self.runs[which]:
                continue
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
                    distance = float(_distance(array, expected).max())
                    setattr(value, field, max(getattr(value, field), distance))

    @staticmethod
    def _again(values: list[Value], first: list[Any], second: list[Any], which: str) -> None:
        for value, one, two in zip(values, first, second, strict=True):
            if not _distance(two, one).any():
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


def _has_bfloat16(model: ir.Model) -> bool:
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [value for node in model.graph for value in node.outputs]
    return any(value.dtype == ir.DataType.BFLOAT16 for value in values)


def _distances(
    values: list[Value], reference: list[list[Any]], results: Iterator[list[Any]]
) -> Iterator[tuple[Value, Spread]]:
    for expected, actual in zip(reference, results, strict=True):
        for value, one, two in zip(values, expected, actual, strict=True):
            yield value, _distance(two, one)


def _distance(actual: Any, expected: Any) -> Spread:
    """The largest difference by channel; for what holds no floats, how many elements differ."""
    if not isinstance(actual, np.ndarray) or not isinstance(expected, np.ndarray):
        return np.zeros(1)  # such a value does not hold anyway
    if actual.shape != expected.shape:
        return np.full(1, math.inf)
    if expected.dtype.kind not in "fV":
        return np.full(1, float(np.count_nonzero(actual != expected)))
    with np.errstate(invalid="ignore", over="ignore"):
        one, two = actual.astype(np.float64), expected.astype(np.float64)
        apart = np.abs(one - two)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    apart = np.where(same, 0, np.where(np.isnan(apart), math.inf, apart))
    return _by_channel(apart)


def _by_channel(array: np.ndarray) -> Spread:
    """The largest of each channel of what is nowhere negative: see ``Spread``."""
    if array.ndim < 2 or not array.shape[1]:
        return np.full(1, array.max(initial=0.0))
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    return np.asarray(array.max(axis=axes, initial=0.0))
