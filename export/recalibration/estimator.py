"""Re-estimation as the estimator of ``freeze``."""

from __future__ import annotations

import onnx_ir as ir

from ..data import DataLike
from ..freeze import Estimator
from ..inputs import model_inputs
from ..sessions import Providers
from .data.sources import open_source
from .measure.executors import Progress
from .measure.measuring import Measuring, Method
from .measure.targets import choose_targets
from .rows import Moments

__all__ = ["estimator"]


def estimator(
    *,
    method: Method = "batch",
    providers: Providers = "cpu",
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Estimator:
    """Make an estimator for ``freeze(model, "recalibrated", estimator=..., data=...)``.

    The statistics are those of all the data, with nothing of the stored ones: a model that was
    exported in training mode may have none that mean anything.

    Parameters
    ----------
    method, providers, num_threads, progress
        As for `recalibrate`.
    """
    run = Measuring(method, providers, num_threads, progress=progress)

    def estimate(model: ir.Model, data: DataLike | None) -> dict[str, Moments]:
        targets = choose_targets(model)
        source = open_source(data, model_inputs(targets.model))
        found = run.measure(targets, source)
        return {
            member: (found[target.name].values.mean, found[target.name].values.var)
            for target in targets.targets
            for member in target.members
        }

    return estimate
