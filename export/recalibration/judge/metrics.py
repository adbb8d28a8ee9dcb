"""Metrics of a model's outputs, over batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...data import DataError
from .decisions import Reading, read_outputs

__all__ = ["Metric", "Scores", "name_of", "top1"]

Metric = Callable[[dict[str, np.ndarray], np.ndarray | None], float]
"""Takes the outputs by name and the labels, int64 of shape (N,) or None without; gives a number of
which more is better, and which is a mean over samples.

It is called once for each model with all held-out samples, the outputs of the batches joined along
the first axis: these are kept in memory. `top1` alone is counted batch by batch."""


def top1(
    outputs: dict[str, np.ndarray], labels: np.ndarray | None, scores: str | None = None
) -> float:
    """Top-1 accuracy: the share of samples whose largest score is that of their label.

    Parameters
    ----------
    outputs : dict of str to ndarray
        The one of shape (N, K) counts: the output that reads as classes, see ``read_outputs``.
    labels : ndarray of int64, shape (N,)
        A sample whose scores hold NaN is not right.
    scores : str, optional
        The output that counts, where a model has several such.

    Raises
    ------
    DataError
        When there are labels outside 0 to K - 1.
    ValueError
        When there are no labels, or no such output.
    """
    if labels is None:
        raise ValueError("top-1 accuracy needs labels")
    reading = read_outputs(outputs, scores)
    if reading is None or outputs[reading.output].shape != (len(labels), reading.classes):
        shapes = ", ".join(f"{name!r} {np.shape(array)}" for name, array in outputs.items())
        raise ValueError(
            f"top-1 accuracy needs one output of scores of shape ({len(labels)}, K), got {shapes}: "
            "name the output that holds the scores, or give a metric of your own"
        )
    if labels.min() < 0 or labels.max() >= reading.classes:
        raise DataError(
            f"expected labels from 0 to {reading.classes - 1}, since output {reading.output!r} has "
            f"{reading.classes} classes, got {labels.min()} to {labels.max()}"
        )
    found = outputs[reading.output]
    known = ~np.isnan(found).any(axis=1)  # argmax would take the first NaN for a decision
    return float(((found.argmax(axis=1) == labels) & known).mean())


def name_of(metric: Metric, reading: Reading | None = None) -> str:
    """What a metric is called in reports; top-1 accuracy says of which output."""
    if metric is top1:
        return "top-1 accuracy" if reading is None else f"top-1 accuracy of {reading.output!r}"
    return getattr(metric, "__name__", str(metric))


class Scores:
    """A metric over batches."""

    def __init__(self, metric: Metric | None) -> None:
        self._metric = metric
        self._batches: list[Mapping[str, np.ndarray]] = []
        self._labels: list[np.ndarray] = []
        self._sum = 0.0
        self._samples = 0

    def add(
        self,
        outputs: dict[str, np.ndarray],
        labels: np.ndarray | None,
        size: int,
        scores: str | None = None,
    ) -> None:
        """Add a batch of `size` samples; `scores` as for `top1`."""
        if self._metric is None:
            return
        self._samples += size
        if self._metric is top1:
            self._sum += top1(outputs, labels, scores) * size
            return
        self._batches.append(outputs)
        if labels is not None:
            self._labels.append(labels)

    def result(self) -> float:
        """The metric of all that was added."""
        assert self._metric is not None
        if self._metric is top1:
            return self._sum / self._samples
        outputs = {
            name: np.concatenate([batch[name] for batch in self._batches])
            for name in self._batches[0]
        }
        value = self._metric(outputs, np.concatenate(self._labels) if self._labels else None)
        return float(value)
