"""What a model says of held-out inputs before and after: decisions, outputs and a metric."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

import cbn

from ...data import DataError
from ...files import ModelLike
from ...sessions import Providers, make_session, run_session
from ..data.labels import LabelReader, read_labels
from ..data.sources import Source
from ..measure.executors import Progress
from ..measure.samples import samples_in
from .decisions import Decisions, Reading, Tally, read_outputs
from .metrics import Metric, Scores, name_of, top1

__all__ = ["HeldOut", "Metric", "compare", "top1"]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Two models on the same inputs.

    What can be said of classes alone is None where no output reads as classes.

    Attributes
    ----------
    samples, decisions : int
        A sample may have several decisions: one for each step of a sequence, each pixel of a map.
    output, kind : str
        The output that reads as decisions among classes, and as what: "probabilities",
        "log-probabilities" or "scores"; "" and "values" where there is none.
    num_classes : int or None
        How many classes it has.
    agreement : float or None
        The share of decisions that stay.
    sure, confident_agreement : float or None
        The share of decisions that the model before is sure of (probability 0.99 or more), and the
        share of those that stay.
    entropy_before, entropy_after : float or None
        Mean entropy of the decisions, from 0, sure, to 1, a guess.
    information_before, information_after : float or None
        What a decision says of its input, from 0, nothing, to 1.
    classes_before, classes_after : int or None
        How many classes are decided for.
    largest_share_before, largest_share_after : float or None
        The share of the class that is decided for most.
    change : float
        The largest change of an output: the root mean square of the difference in deviations of the
        output before; infinite where its shape changes.
    metric : str or None
        Its name.
    metric_before, metric_after : float or None
    """

    samples: int
    decisions: int = 0
    output: str = ""
    kind: str = "values"
    num_classes: int | None = None
    agreement: float | None = None
    sure: float | None = None
    confident_agreement: float | None = None
    entropy_before: float | None = None
    entropy_after: float | None = None
    information_before: float | None = None
    information_after: float | None = None
    classes_before: int | None = None
    classes_after: int | None = None
    largest_share_before: float | None = None
    largest_share_after: float | None = None
    change: float = 0.0
    metric: str | None = None
    metric_before: float | None = None
    metric_after: float | None = None

    @property
    def worse(self) -> bool:
        """Whether the metric fell, or is no number any more."""
        before, after = self.metric_before, self.metric_after
        return before is not None and after is not None and not after >= before

    @property
    def ok(self) -> bool:
        """Whether the metric, if there is one, did not fall."""
        return not self.worse


def compare(
    before: ModelLike,
    after: ModelLike,
    held_out: Source,
    *,
    metric: Metric | None = None,
    labels: LabelReader | Any = None,
    scores: str | None = None,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> HeldOut:
    """Run two models on the same inputs, batch by batch, and compare what they say.

    Nothing is kept of a batch but sums, and one number a sample; a metric other than `top1` needs
    all outputs in memory.

    Parameters
    ----------
    before, after : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        Models with the same inputs and outputs.
    held_out : Source
    metric : callable, optional
        See ``Metric``.
    labels : optional
        One for each sample of `held_out`, in its order: see ``read_labels``.
    scores : str, optional
        The output that holds the scores of classes; found by ``read_outputs`` otherwise.
    providers, num_threads
        As for ``make_session``.
    progress : callable, optional
        Called as ``progress("comparing", batches done, of how many)``.

    Returns
    -------
    HeldOut

    Raises
    ------
    ModelError
        When a model cannot be read or run.
    DataError
        When there are fewer labels than samples, or `top1` is asked of labels outside its classes.
    ValueError
        When the metric is no number, or cannot be had from the outputs, or `scores` names no output
        of scores.
    """
    sessions = [
        make_session(model, providers, num_threads=num_threads) for model in (before, after)
    ]
    reader = None if labels is None else read_labels(labels)
    samples, reading = 0, None
    tallies = Tally(), Tally()
    changes: dict[str, _Change] = {}
    metrics = [Scores(metric), Scores(metric)]
    for number, feeds in enumerate(held_out, 1):
        old, new = (run_session(session, feeds) for session in sessions)
        size = samples_in(feeds)
        wanted = None if reader is None else reader.take(samples, size)
        if not samples:
            reading = read_outputs(old, scores)
        if reading is not None:
            decisions = [Decisions.of(reading, outputs) for outputs in (old, new)]
            for mine, tally in zip(decisions, tallies, strict=True):
                tally.add(mine, decisions[0])
        for name in old:
            changes[name] = changes.get(name, _Change()).after(old[name], new[name])
        with _about_labels(reader if metric is top1 else None):
            for score, outputs in zip(metrics, (old, new), strict=True):
                score.add(outputs, wanted, size, reading.output if reading is not None else scores)
        samples += size
        if progress is not None:
            progress("comparing", number, held_out.batches)
    found = HeldOut(samples, change=max((c.size for c in changes.values()), default=0.0))
    if reading is not None:
        found = _with_decisions(found, reading, *tallies)
    if metric is None:
        return found
    return dataclasses.replace(
        found,
        metric=name_of(metric, reading),
        metric_before=metrics[0].result(),
        metric_after=metrics[1].result(),
    )


@contextlib.contextmanager
def _about_labels(reader: LabelReader | None) -> Iterator[None]:
    """Name the labels in the errors of a metric that has nothing else to find wrong."""
    try:
        yield
    except DataError as error:
        raise error if reader is None else DataError(f"{reader.origin}: {error}") from error


def _with_decisions(found: HeldOut, reading: Reading, old: Tally, new: Tally) -> HeldOut:
    return dataclasses.replace(
        found,
        decisions=new.count,
        output=reading.output,
        kind=reading.kind,
        num_classes=reading.classes,
        agreement=new.agreement,
        sure=new.sure,
        confident_agreement=new.sure_kept,
        entropy_before=old.entropy,
        entropy_after=new.entropy,
        information_before=old.information,
        information_after=new.information,
        classes_before=old.classes,
        classes_after=new.classes,
        largest_share_before=old.largest_share,
        largest_share_after=new.largest_share,
    )


@dataclasses.dataclass(frozen=True)
class _Change:
    """How far one output moves, over batches."""

    before: cbn.BatchStats | None = None
    squares: float = 0.0

    def after(self, old: Any, new: Any) -> _Change:
        """Add a batch."""
        if not isinstance(old, np.ndarray):  # a sequence, a map
            return self
        if old.dtype.kind not in "fiub":
            return self
        if old.shape != new.shape:
            return dataclasses.replace(self, squares=np.inf)
        if not old.size:
            return self
        wide = old.astype(np.float64).reshape(-1, 1)
        apart = new.astype(np.float64).reshape(-1, 1) - wide
        seen = cbn.batch_stats(wide)
        total = seen if self.before is None else self.before + seen
        return _Change(total, self.squares + float((apart**2).sum()))

    @property
    def size(self) -> float:
        """Root mean square of the change, in deviations of the output before."""
        if self.before is None or not self.squares:
            return float(self.squares)
        spread = float(self.before.m2[0])
        return float(np.sqrt(self.squares / spread)) if spread else float("inf")
