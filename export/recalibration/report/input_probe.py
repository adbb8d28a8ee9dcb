"""Run what lies between a model's input and its first batch norm, on the data, on 0 and on 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

import cbn

from ...files import ModelError
from ...inputs import Feeds, model_inputs
from ...nodes import find_nodes
from ...sessions import Providers, RunError, make_session, run_session
from ...taps import expose
from ..measure.targets import Target, Targets
from .first_layer import FEWEST_CHANNELS, InputChange, Responses, fit

__all__ = ["InputProbe"]

_IMAGE_RANK = 4

_ROUNDINGS = 256
"""Units in the last place by which a sum of two runs may miss a third and still be called equal:
a convolution adds up thousands of terms."""


class InputProbe:
    """Finds what change of the input explains the drift of the first layer, batch by batch.

    Parameters
    ----------
    target : Target
        The first layer.
    input_name : str
        The input that is changed; others are given as they are.
    session : onnxruntime.InferenceSession
        Gives the first layer's input.
    num_threads : int, optional
        For cbn.
    """

    def __init__(
        self, target: Target, input_name: str, session: Any, num_threads: int | None = None
    ) -> None:
        self._target = target
        self._input = input_name
        self._session = session
        self._num_threads = num_threads
        self._seen: Responses | None = None
        self._values: cbn.BatchStats | None = None
        self._image = False
        self._affine = True
        self._last: tuple[tuple[int, ...], np.ndarray, np.ndarray] | None = None

    @classmethod
    def find(
        cls, targets: Targets, providers: Providers = "cpu", num_threads: int | None = None
    ) -> InputProbe | None:
        """Make a probe, or None where a model has no first layer that sees one floating input.

        The layer must have 4 channels or more, trained statistics of its own, and hear of no other
        batch norm.
        """
        first = find_nodes(targets.model)[0]
        target = next((t for t in targets.targets if t.members == (first.name,)), None)
        floats = [
            declared for declared in model_inputs(targets.model) if declared.dtype.kind == "f"
        ]
        if target is None or first.untouched or target.channels < FEWEST_CHANNELS:
            return None
        if len(floats) != 1:
            return None
        x = str(first.node.inputs[0].name) if first.node.inputs[0] is not None else ""
        try:
            before = _before(targets.model, x)
            if floats[0].name not in {value.name for value in before.graph.inputs}:
                return None
            session = make_session(before, providers, num_threads=num_threads)
        except ModelError:  # what runs as a whole may not run in part
            return None
        return cls(target, floats[0].name, session, num_threads)

    def add(self, feeds: Feeds) -> None:
        """Take in a batch."""
        if not self._affine:
            return
        data = feeds[self._input]
        try:
            with np.errstate(all="ignore"):
                zero, one = self._constants(feeds)
                seen = self._run(feeds, data)
                self._affine = zero.shape == one.shape == seen.shape
                if self._seen is None and self._affine:
                    self._image = data.ndim == _IMAGE_RANK
                    self._affine = self._is_affine(feeds, zero, seen, one)
        except RunError:  # a model may refuse zeros
            self._affine = False
        if not self._affine:
            return
        found = Responses.of(zero, seen, one, num_threads=self._num_threads)
        flat = np.ascontiguousarray(data).reshape(1, 1, -1)
        values = cbn.batch_stats(flat, num_threads=self._num_threads)
        self._seen = found if self._seen is None else self._seen + found
        self._values = values if self._values is None else self._values + values

    def change(self) -> InputChange | None:
        """Give what was found; None when the way to the first layer is no affine one."""
        if not self._affine or self._seen is None or self._values is None:
            return None
        target = self._target
        scale, offset, explained = fit(self._seen, target.mean, target.var, target.eps)
        mean, deviation = float(self._values.mean[0]), float(np.sqrt(self._values.var[0]))
        return InputChange(
            input=self._input,
            layer=target.name,
            mean=mean,
            deviation=deviation,
            scale=scale,
            offset=offset,
            fitting_mean=scale * mean + offset,
            fitting_deviation=abs(scale) * deviation,
            explained=explained,
            image=self._image,
        )

    def _is_affine(self, feeds: Feeds, zero: np.ndarray, seen: np.ndarray, one: np.ndarray) -> bool:
        """Try a point between the data and 1, where an affine map is between, too."""
        data = feeds[self._input]
        half = np.asarray(0.5, data.dtype)
        between = self._run(feeds, data * half + half)
        size = np.abs(seen).max() + np.abs(zero).max() + np.abs(one).max()
        error = np.abs(between - (seen + one) / 2).max()
        return bool(error <= _ROUNDINGS * np.finfo(data.dtype).eps * size)

    def _constants(self, feeds: Feeds) -> tuple[np.ndarray, np.ndarray]:
        """What the layer sees of 0 and of 1, in the shape of the batch."""
        data = feeds[self._input]
        if self._last is None or self._last[0] != data.shape:
            zero, one = (self._run(feeds, np.full_like(data, value)) for value in (0, 1))
            self._last = (data.shape, zero, one)
        return self._last[1:]

    def _run(self, feeds: Feeds, data: np.ndarray) -> np.ndarray:
        names = {value.name for value in self._session.get_inputs()}
        given = {name: array for name, array in feeds.items() if name in names}
        (result,) = run_session(self._session, {**given, self._input: data}).values()
        return np.asarray(result)


def _before(model: ir.Model, value: str) -> ir.Model:
    """Cut a model down to what makes one of its values."""
    exposed, outputs = expose(model, [value])
    graph = exposed.graph
    inputs = [given for given in graph.inputs if given.name not in graph.initializers]
    try:
        part = ir.convenience.extract(graph, inputs, [outputs[value]])
    except ValueError as error:
        raise ModelError(f"what comes before {value!r} cannot be cut out: {error}") from error
    used = [given for given in part.inputs if given.uses()]
    for given in list(part.inputs):
        if given not in used:
            part.inputs.remove(given)
    return ir.Model(part, ir_version=exposed.ir_version, functions=list(exposed.functions.values()))
