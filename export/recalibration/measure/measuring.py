"""See what reaches the batch norms of a model, by one of the two methods."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Literal, cast, get_args

import numpy as np

from ...sessions import Providers
from ..data.sources import Source
from ..judge.blend import blend
from ..rows import Moments
from .batch_pass import BatchPass
from .checkpoint import Checkpoint
from .executors import ExecutorLike, Progress, map_in_order
from .observed import Observed
from .sequential import MEMORY, sweep
from .targets import Target, Targets
from .trail import Trail

__all__ = ["Measuring", "Method", "is_untouched", "is_void", "mix"]

Method = Literal["batch", "sequential"]


@dataclasses.dataclass(frozen=True)
class Measuring:
    """How to see what reaches the targets of a model.

    Parameters
    ----------
    method : {"batch", "sequential"}
    providers, num_threads
        See ``make_session``.
    executor : optional
        See ``map_in_order``; for ``"batch"`` alone.
    progress : callable, optional
    memory : int
        See ``sweep``.

    Raises
    ------
    ValueError
        When the method is none of the two, or ``"sequential"`` with an executor.
    """

    method: Method
    providers: Providers
    num_threads: int | None
    executor: ExecutorLike = None
    progress: Progress | None = None
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            accepted = ", ".join(map(repr, get_args(Method)))
            raise ValueError(f"expected method to be one of {accepted}, got {self.method!r}")
        if self.method == "sequential" and self.executor is not None:
            raise ValueError(
                "an executor needs method 'batch': a sequential sweep has no independent batches"
            )

    def tell(self, stage: str) -> None:
        """Say what is done once all is measured."""
        if self.progress is not None:
            self.progress(stage, 0, None)

    def measure(
        self,
        targets: Targets,
        source: Source,
        prior: float = 0.0,
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, Observed]:
        """See what reaches each target; `prior` is what later layers are measured under."""
        if self.method == "batch":
            return self._in_one_pass(targets, source, checkpoint)

        def correct(target: Target, seen: Observed) -> Moments:
            return mix(target, seen, prior)

        return sweep(
            targets,
            source,
            correct=correct,
            providers=self.providers,
            num_threads=self.num_threads,
            memory=self.memory,
            progress=self.progress,
            checkpoint=checkpoint,
        )

    def _in_one_pass(
        self, targets: Targets, source: Source, checkpoint: Checkpoint | None
    ) -> dict[str, Observed]:
        measure = BatchPass(targets, providers=self.providers, num_threads=self.num_threads)
        done, merged = (0, {}) if checkpoint is None else checkpoint.load()
        trail = Trail(source, checkpoint)
        seen = map_in_order(measure, trail.numbered(), self.executor)
        with contextlib.closing(cast("Generator[dict[str, Observed]]", seen)):
            for batch in seen:
                merged = {n: merged[n] + o if n in merged else o for n, o in batch.items()}
                done += 1
                if checkpoint is not None:
                    checkpoint.save(done, merged, trail.mark(done))
                if self.progress is not None:
                    self.progress("measuring", done, source.batches)
        return merged


def is_void(target: Target) -> bool:
    """Whether stored statistics mean nothing: there are no numbers to normalize with."""
    finite = np.isfinite(target.mean).all() and np.isfinite(target.var).all()
    return not finite or bool((target.var < 0).any())


def is_untouched(target: Target) -> bool:
    """Whether they are 0 and 1, as before any training; or an affine map, where others differ."""
    return not target.mean.any() and bool((target.var == 1).all())


def mix(target: Target, seen: Observed, prior: float) -> Moments:
    """Blend stored with observed statistics; of stored ones that mean nothing, nothing is left."""
    return blend((target.mean, target.var), seen, 0.0 if is_void(target) else prior)
