"""Method "sequential": layer by layer, each measured under the corrected ones before it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ...inputs import Feeds
from ...sessions import Providers
from ..data.sources import Source
from .checkpoint import Checkpoint
from .executors import Progress
from .observed import Observed
from .samples import measure, observe, samples_in
from .stage_run import StageRun
from .stages import Moments, Plan, Stage, plan_stages
from .targets import Target, Targets
from .tensors import KeptTensors, ScratchTensors
from .trail import Trail

__all__ = ["MEMORY", "Correct", "sweep"]

Correct = Callable[[Target, Observed], Moments]
"""Makes of what was seen of a target the mean and variance that later layers are measured under."""

MEMORY = 2**30
"""Bytes of tensors between stages that stay in memory unless told otherwise."""

# Kept beside the tensors, under names that no value of a model has.
_COUNT = "\nnumber of batches"
_PLACE = "\nfirst sample and number of samples"


def sweep(
    targets: Targets,
    source: Source,
    *,
    correct: Correct,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    memory: int = MEMORY,
    scratch: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Observed]:
    """Measure each target under the corrected statistics of those before it.

    The model is cut at its targets. Each stage runs over all batches, its batch norms' inputs are
    measured by cbn's kernels, in float64, and corrected before the next stage starts: the model is
    computed once in all, and what is found does not depend on the batches. What a later stage
    reads is kept: in memory up to a limit, beyond it in files, until no stage needs it.

    Parameters
    ----------
    targets : Targets
    source : Source
        Read once; once more when a checkpoint of an iterable's goes on with a later stage.
    correct : callable
        Takes a target and what was seen of it, gives (mean, var), float64 of shape (C,).
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
    num_threads : int, optional
        For onnxruntime and for cbn.
    memory : int, default: 2**30
        Bytes of tensors between stages that stay in memory.
    scratch : str or os.PathLike, optional
        An existing folder for the files; the system's temporary one when None. Removed also when
        the sweep fails.
    progress : callable, optional
        Called as ``progress("stage 2 of 5", done, total)`` after each batch.
    checkpoint : Checkpoint, optional
        Where to note how far it is. The tensors between stages then all go into a folder beside
        it, ``<name>.tensors``, which is removed once the sweep is through.

    Returns
    -------
    dict of str to Observed
        By target, in graph order. With the population variance (ddof=0).

    Raises
    ------
    DataError
        When NaN or infinity reaches a target; the message names it and the samples.
    ModelError
        When onnxruntime cannot load or run the model, a value between stages is no tensor or of
        bfloat16, or what `correct` gives does not fit.
    ProviderError
        When a provider that was asked for is not in use.
    CheckpointError
        When the folder beside the checkpoint is not what it was left as, or is not the sweep's
        own, or the data are not those that the checkpoint has read.
    OSError
        When the files cannot be written.

    Notes
    -----
    A layer that is used several times is measured at each use under what its earlier uses gave,
    and ends with what all of them gave; uses at several depths count as samples of their own.
    """
    plan = plan_stages(targets)
    if checkpoint is not None:
        kept = KeptTensors(checkpoint.path.with_name(f"{checkpoint.path.name}.tensors"))
        run = _Sweep(plan, source, kept, correct, providers, num_threads, progress)
        seen = run.stages(checkpoint)
        kept.remove()
        return seen
    with ScratchTensors(memory, scratch) as tensors:
        run = _Sweep(plan, source, tensors, correct, providers, num_threads, progress)
        return run.stages(None)


class _Batch(NamedTuple):
    """Where a batch is in the data, and what a stage reads of it."""

    number: int
    first_sample: int
    samples: int
    feeds: Feeds


class _Sweep:
    """All stages over all batches."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        tensors: KeptTensors | ScratchTensors,
        correct: Correct,
        providers: Providers,
        num_threads: int | None,
        progress: Progress | None,
    ) -> None:
        self._plan = plan
        self._source = source
        self._tensors = tensors
        self._correct = correct
        self._providers = providers
        self._num_threads = num_threads
        self._progress = progress

    def stages(self, checkpoint: Checkpoint | None) -> dict[str, Observed]:
        """Run those that are not through yet, and return what was seen in all."""
        start, seen = (0, {}) if checkpoint is None else (checkpoint.stage, checkpoint.finished)
        if start:
            Trail(self._source, checkpoint).check()
        for index in range(start, len(self._plan.stages)):
            corrected = {
                target.name: self._correct(target, seen[target.name])
                for target in self._plan.targets
                if target.name in seen
            }
            within = self._stage(index, corrected, checkpoint)
            within = {n: seen[n] + found if n in seen else found for n, found in within.items()}
            seen |= within
            if checkpoint is not None:
                checkpoint.finish_stage(within)
                checkpoint.write()  # before tensors go that an earlier state needs
                for batch in range(self._count()):
                    self._free(index, batch)
        return {target.name: seen[target.name] for target in self._plan.targets}

    def _stage(
        self, index: int, corrected: Mapping[str, Moments], checkpoint: Checkpoint | None
    ) -> dict[str, Observed]:
        """Run one stage over the batches that it is not through with."""
        stage = self._plan.stages[index]
        total = self._count() if index else self._source.batches
        done, seen = (0, {}) if checkpoint is None else checkpoint.load()
        run = StageRun(self._plan, stage, corrected, self._providers, self._num_threads)
        trail = Trail(self._source, checkpoint)
        batches = self._later_batches(stage, done) if index else self._first_batches(trail, done)
        for batch in batches:
            made = run(batch.feeds)
            values = {**batch.feeds, **made}
            for name, observed in self._observe(stage, values, batch).items():
                seen[name] = seen[name] + observed if name in seen else observed
            if not index:
                made |= {n: array.copy() for n, array in batch.feeds.items() if n in stage.kept}
            self._tensors.put(batch.number, {n: made[n] for n in stage.kept if n in made})
            done = batch.number + 1
            if checkpoint is None:
                self._free(index, batch.number)
            else:
                checkpoint.save(done, seen, None if index else trail.mark(done))
            if self._progress is not None:
                stages = len(self._plan.stages)
                self._progress(f"stage {index + 1} of {stages}", done, total)
        if not index:
            self._tensors.put(0, {_COUNT: np.array([done])})
        return seen

    def _observe(
        self, stage: Stage, values: Mapping[str, np.ndarray], batch: _Batch
    ) -> dict[str, Observed]:
        """Measure the inputs of this stage's batch norms, each array once."""
        arrays = {name: values[name] for name in set(stage.measured.values())}
        moments = {n: measure(x, num_threads=self._num_threads) for n, x in arrays.items()}
        seen = {}
        for target in self._plan.targets:
            members = tuple(member for member in target.members if member in stage.measured)
            if members:
                here = dataclasses.replace(target, members=members)
                found = [moments[stage.measured[member]] for member in members]
                seen[target.name] = observe(here, found, batch.samples, batch.first_sample)
        return seen

    def _first_batches(self, trail: Trail, done: int) -> Iterator[_Batch]:
        for index, (feeds, first) in enumerate(trail.numbered(), done):
            samples = samples_in(feeds)
            self._tensors.put(index, {_PLACE: np.array([first, samples])})
            yield _Batch(index, first, samples, feeds)

    def _later_batches(self, stage: Stage, done: int) -> Iterator[_Batch]:
        for index in range(done, self._count()):
            first, samples = (int(number) for number in self._tensors.get(index, _PLACE))
            feeds = {name: self._tensors.get(index, name) for name in stage.wanted}
            yield _Batch(index, first, samples, feeds)

    def _count(self) -> int:
        """Number of batches, once the first stage is through."""
        return int(self._tensors.get(0, _COUNT)[0])

    def _free(self, index: int, batch: int) -> None:
        """Forget the tensors of a batch that no stage after this one reads."""
        kept = set(self._plan.stages[index].kept)
        for name in set(self._plan.stages[index - 1].kept if index else ()) - kept:
            self._tensors.free(batch, name)
