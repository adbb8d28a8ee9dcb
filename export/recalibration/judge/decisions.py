"""Read a model's outputs as decisions among classes: how sure they are, and how varied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

__all__ = ["SURE", "Decisions", "Reading", "Tally", "read_outputs"]

Kind = Literal["probabilities", "log-probabilities", "scores"]

SURE = 0.99
"""From which probability on a decision is a sure one."""

# Sums of 16-bit probabilities over thousands of classes are off by some thousandths.
_SUM_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which output is read as decisions, and how.

    Attributes
    ----------
    output : str
        Its name.
    kind : {"probabilities", "log-probabilities", "scores"}
        Scores are what softmax makes probabilities of: logits.
    axis : {-1, 1}
        The axis of the classes.
    classes : int
        K, 2 or more.
    """

    output: str
    kind: Kind
    axis: Literal[-1, 1]
    classes: int

    def __str__(self) -> str:
        return f"{self.output!r}, read as {self.kind} of {self.classes} classes"

    def probabilities(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return float32 probabilities of shape (N, P, K): P decisions of each of N samples."""
        values = np.moveaxis(outputs[self.output], self.axis, -1).astype(np.float32)
        values = values.reshape(len(values), -1, self.classes)
        if self.kind == "probabilities":
            return values
        with np.errstate(invalid="ignore"):  # infinite scores give NaN, which no rule lets pass
            values = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(values / values.sum(axis=-1, keepdims=True))


def read_outputs(outputs: Mapping[str, np.ndarray], scores: str | None = None) -> Reading | None:
    """Find the output that reads as decisions among classes, from one batch of outputs.

    Probabilities come first: floats from 0 to 1 whose sums over the last axis are 1, or over axis 1
    as in maps (N, K, H, W). Then logarithms of such. Then floats of shape (N, K) or (N, T, K), as
    scores, where one output alone has such a shape, leaving out those whose rows all have the
    length 1, as embeddings do. K is 2 or more.

    The values cannot tell scores from other numbers: a regression onto K numbers, or boxes
    (N, T, 4), reads as scores too when it is the only such output.

    Parameters
    ----------
    outputs : mapping of str to ndarray
    scores : str, optional
        The output to read; the others are not looked at.

    Returns
    -------
    Reading or None
        None where no output reads as classes: embeddings, depth maps, single numbers, or several
        that could be scores.

    Raises
    ------
    ValueError
        When there is no output `scores`, or it does not read as classes.
    """
    if scores is not None:
        return _named(outputs, scores)
    floats = _floats(outputs)
    for name, array in floats.items():
        for axis in (-1, 1) if array.ndim > 2 else (-1,) if array.ndim == 2 else ():
            if array.shape[axis] > 1 and _sums_to_one(array, axis):
                return Reading(name, "probabilities", axis, array.shape[axis])
    rows = {name: a for name, a in floats.items() if a.ndim in (2, 3) and a.shape[-1] > 1}
    for name, array in rows.items():
        if (array <= _SUM_TOLERANCE).all() and _sums_to_one(np.exp(array.astype(np.float32)), -1):
            return Reading(name, "log-probabilities", -1, array.shape[-1])
    left = {name: array for name, array in rows.items() if not _unit_length(array)}
    if len(left) == 1:  # of several nothing tells which is the scores: features, boxes
        ((name, array),) = left.items()
        return Reading(name, "scores", -1, array.shape[-1])
    return None


def _named(outputs: Mapping[str, np.ndarray], name: str) -> Reading:
    if name not in outputs:
        known = ", ".join(map(repr, outputs))
        raise ValueError(f"there is no output {name!r} to read scores from: there are {known}")
    found = read_outputs({name: outputs[name]})
    if found is not None:
        return found
    array = outputs[name]
    if name not in _floats(outputs) or array.ndim not in (2, 3) or array.shape[-1] < 2:
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no tensor"
        raise ValueError(
            f"expected scores as floats of shape (N, K) or (N, T, K) with 2 classes or more, got "
            f"output {name!r}: {what}"
        )
    return Reading(name, "scores", -1, array.shape[-1])  # rows of length 1, and named all the same


def _floats(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: array
        for name, array in outputs.items()
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size
    }


def _sums_to_one(array: np.ndarray, axis: int) -> bool:
    if not (array >= 0).all():  # NaN is no probability either
        return False
    return bool(np.allclose(array.sum(axis=axis, dtype=np.float64), 1, rtol=0, atol=_SUM_TOLERANCE))


def _unit_length(array: np.ndarray) -> bool:
    lengths = np.linalg.norm(array.astype(np.float64), axis=-1)
    return bool(np.allclose(lengths, 1, rtol=0, atol=_SUM_TOLERANCE))


@dataclasses.dataclass(frozen=True, eq=False)
class Decisions:
    """What one batch of outputs decides: P decisions of each of N samples, among K classes.

    Attributes
    ----------
    classes : ndarray of int, shape (N, P)
        The most probable class.
    sure : ndarray of bool, shape (N, P)
        Where its probability is 0.99 or more.
    entropies : ndarray of float64, shape (N,)
        Mean entropy of each sample's decisions, in parts of log K: 0 sure, 1 a guess.
    total : ndarray of float64, shape (K,)
        Sum of all probabilities.
    """

    classes: np.ndarray
    sure: np.ndarray
    entropies: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, reading: Reading, outputs: Mapping[str, np.ndarray]) -> Decisions:
        """Read one batch of outputs."""
        p = reading.probabilities(outputs)
        return cls(
            classes=p.argmax(axis=-1),
            sure=p.max(axis=-1) >= SURE,
            entropies=_entropy(p).mean(axis=1, dtype=np.float64) / np.log(reading.classes),
            total=p.sum(axis=(0, 1), dtype=np.float64),
        )


class Tally:
    """Running sums over the decisions of batches: of one model, compared with a first one's.

    Holds one number a sample and one a class, whatever the size of the outputs.
    """

    def __init__(self) -> None:
        self.count = 0
        self._entropies: list[np.ndarray] = []
        self._total: np.ndarray | float = 0.0
        self._votes: np.ndarray | int = 0
        self._same = self._sure = self._sure_same = 0

    def add(self, mine: Decisions, first: Decisions) -> None:
        """Add a batch of this model's, and the first model's of the same inputs."""
        self._entropies.append(mine.entropies)
        self._total = self._total + mine.total
        votes = np.bincount(mine.classes.ravel(), minlength=mine.total.size)
        self._votes = self._votes + votes
        self.count += mine.classes.size
        if mine.classes.shape == first.classes.shape:
            same = mine.classes == first.classes
            self._same += int(same.sum())
            self._sure_same += int(same[first.sure].sum())
        self._sure += int(first.sure.sum())

    @property
    def entropies(self) -> np.ndarray:
        """Of each sample: see `Decisions`. Shape (N,)."""
        return np.concatenate(self._entropies)

    @property
    def entropy(self) -> float:
        """Mean of `entropies`."""
        return float(self.entropies.mean())

    @property
    def information(self) -> float:
        """What a decision says of its input: mutual information of both, in parts of log K.

        The entropy of the mean of all probabilities less the mean of their entropies (Bridle,
        Heading and MacKay, 1992): 0 where all inputs are answered alike, however surely.
        """
        mean = np.asarray(self._total) / self.count
        return max(0.0, float(_entropy(mean) / np.log(mean.size)) - self.entropy)

    @property
    def classes(self) -> int:
        """How many classes were decided for."""
        return int(np.count_nonzero(self._votes))

    @property
    def largest_share(self) -> float:
        """The share of the class that was decided for most."""
        return float(np.max(self._votes) / self.count)

    @property
    def agreement(self) -> float:
        """The share of decisions that are the first model's."""
        return self._same / self.count

    @property
    def sure(self) -> float:
        """The share of decisions that the first model was sure of."""
        return self._sure / self.count

    @property
    def sure_kept(self) -> float | None:
        """Of the decisions that the first model was sure of, the share that is the same."""
        return self._sure_same / self._sure if self._sure else None


def _entropy(p: np.ndarray) -> np.ndarray:
    """Entropy over the last axis, in nats."""
    return np.asarray(-(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(axis=-1))
