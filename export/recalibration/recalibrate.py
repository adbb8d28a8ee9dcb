"""Give a model the running statistics that it has on your own data, and say what that does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import onnx_ir as ir

from ..files import ModelLike
from ..inputs import model_inputs
from ..nodes import find_nodes
from ..rewrite import KEPT
from ..sessions import Providers
from .apply import apply_statistics
from .data.images import ImageOptions
from .data.sources import Source, open_source, split
from .judge.blend import PriorChoice, choose_prior, weight_of
from .judge.evidence import evidence
from .judge.heldout import Metric, compare, top1
from .measure.checkpoint import Checkpoint
from .measure.checkpoint_key import checkpoint_key
from .measure.executors import ExecutorLike, Progress
from .measure.measuring import Measuring, Method, is_untouched, is_void, mix
from .measure.observed import Observed
from .measure.sequential import MEMORY
from .measure.targets import Targets, choose_targets
from .recalibration_result import RecalibrationResult
from .report.drift import drift_from
from .report.first_layer import InputChange
from .report.input_probe import InputProbe
from .rows import rows_of

__all__ = ["recalibrate"]

_VOID = "they are no numbers to normalize with"


def recalibrate(
    model: ModelLike,
    data: Any,
    *,
    method: Method = "batch",
    prior: float | Literal["auto"] = "auto",
    nodes: Collection[str] | None = None,
    held_out: float = 0.2,
    metric: Metric | None = None,
    labels: Any = None,
    scores: str | None = None,
    batch_size: int | None = None,
    images: ImageOptions | str | os.PathLike[str] | None = None,
    limit: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    keep_checkpoint: bool = False,
    executor: ExecutorLike = None,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    memory: int = MEMORY,
) -> RecalibrationResult:
    """Re-estimate the running statistics of a model's batch norms on your own data.

    Labels are not needed. Part of the data is held out, the rest goes through the network, the
    mean and the population variance (ddof=0) of what reaches each node take the place of the
    stored ones, as far as `prior` says, and both models are compared on the held-out part.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    data : optional
        What ``open_source`` takes: arrays, files, folders, images, an iterable of batches,
        ``"script.py:function"``.
    method : {"batch", "sequential"}, default: "batch"
        ``"batch"``: one pass in which each node normalizes with the batch's own statistics, as
        ``torch.optim.swa_utils.update_bn`` and fvcore's ``update_bn_stats`` have it. It depends on
        the batches: large ones, of mixed classes, are better. ``"sequential"``: layer by layer,
        each measured under the new statistics of those before it. It does not depend on the
        batches, and costs more time and, for what lies between the layers, memory.
    prior : float or "auto", default: "auto"
        How many samples the stored statistics count as: with n samples measured, their weight is
        ``prior / (prior + n)`` (Schneider et al., NeurIPS 2020). 0 leaves nothing of them,
        ``math.inf`` nothing else. ``"auto"`` chooses by the outputs on the held-out inputs, see
        ``choose_prior``. Stored statistics with NaN, infinity or a negative variance count nothing,
        whatever the prior; nor do those of a model that has 0 and 1 in all nodes, as before any
        training.
    nodes : collection of str, optional
        Names, as ``find_nodes`` gives them, or patterns such as ``"layer1.*"``; all when None.
    held_out : float, default: 0.2
        The share of the data that takes no part in the statistics. 0 for none, and then no
        ``"auto"`` and no metric.
    metric : callable, optional
        Takes the outputs on the held-out inputs and their labels, gives a number of which more is
        better; see ``Metric``. The result is false when it falls.
    labels : optional
        A label for each sample, in a file or array: see ``open_source``. With labels and no metric
        the metric is top-1 accuracy.
    scores : str, optional
        The output that holds the scores of classes, by which ``"auto"`` chooses and top-1 accuracy
        counts. Otherwise probabilities, or the only output of shape (N, K) or (N, T, K) with K of 2
        or more, are taken for it, also where they are a regression's: the result names what was
        read, and how. See ``read_outputs``.
    batch_size, images, limit
        How the data is read: see ``open_source``.
    checkpoint : str or os.PathLike, optional
        A file that keeps what was measured, with ``"sequential"`` beside a folder of its name and
        ``.tensors``, so that a run that was stopped goes on to the same bits when it is called
        again. Deleted when the run is through and the result is true; after any other it is kept,
        for a run with another `metric`, `labels` or, with ``"batch"``, `prior`.
    keep_checkpoint : bool, default: False
        Keep it in any case: the caller deletes it once the result is written.
    executor : optional
        Where the batches are run: see ``map_in_order``. For ``"batch"`` alone.
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
    num_threads : int, optional
        For onnxruntime and for cbn. Results are the same to the bit for one number of threads.
    seed : int, default: 0
        Of the choice of what is held out.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    memory : int, default: 2**30
        Bytes of tensors that ``"sequential"`` keeps between layers; beyond, they go to the disk.

    Returns
    -------
    RecalibrationResult
        Nothing is written: that is for the caller to decide on the evidence.

    Raises
    ------
    ModelError
        When the model cannot be read or run, or no node of it can be re-estimated.
    DataError
        When the data cannot be read, does not fit the model, or gives NaN or infinity in a layer.
    CheckpointError
        When the checkpoint is damaged or belongs to another run.
    ProviderError
        When a provider that was asked for is not in use.
    ValueError
        When an option is none of the accepted ones.

    Notes
    -----
    With ``"sequential"`` a given prior is blended in at each layer before the next one is measured;
    ``"auto"`` is chosen once all are measured, without it.
    """
    run = Measuring(method, providers, num_threads, executor, progress, memory)
    _check(prior, held_out, metric, labels)
    names = None if nodes is None else sorted([nodes] if isinstance(nodes, str) else nodes)
    targets = choose_targets(model, names)
    source = open_source(
        data,
        model_inputs(targets.model),
        batch_size=batch_size,
        images=images,
        limit=limit,
        labels=labels,
    )
    measured, held = split(source, held_out, seed) if held_out else (source, None)
    untrained = all(map(is_untouched, targets.targets))
    given = 0.0 if prior == "auto" or untrained else float(prior)
    key = {
        "method": method,
        "nodes": names,
        "held_out": held_out,
        "seed": seed,
        "providers": providers,
        "num_threads": num_threads,
        "prior": given if method == "sequential" else None,
    }
    with _opened(checkpoint, targets, measured, key) as saved:
        resumed = _resumed(saved)
        statistics = run.measure(targets, measured, given, saved)
        run.tell("choosing the prior")
        choice = _choose(prior, targets, statistics, held, scores, providers, num_threads)
        moments = {
            target.name: mix(target, statistics[target.name], choice.prior)
            for target in targets.targets
        }
        after = apply_statistics(targets, moments)
        seen = change = None
        if held is not None:
            run.tell("comparing")
            seen = compare(
                _in_eval_mode(targets),
                after,
                held,
                metric=metric or (top1 if labels is not None else None),
                labels=held.labels,
                scores=scores,
                providers=providers,
                num_threads=num_threads,
            )
            change = _input_change(targets, held, providers, num_threads)
        drifted = drift_from(targets, statistics, method=method, inputs=change)
        done = {t.name: "re-estimated" if is_void(t) else _action(choice) for t in targets.targets}
        result = RecalibrationResult(
            rows=rows_of(targets, moments, done, dict(targets.refused), failed=bool(names)),
            model=after,
            method=method,
            statistics=statistics,
            prior=choice,
            evidence=evidence(
                targets, statistics, held_out=seen, prior=choice, named=scores is not None
            ),
            drift=drifted,
            held_out=seen,
            notes=(*resumed, *targets.notes, *source.notes, *drifted.of_inputs),
        )
        if saved is not None and result.ok and not keep_checkpoint:
            saved.remove()
    return result


def _check(
    prior: float | Literal["auto"], held_out: float, metric: Metric | None, labels: Any
) -> None:
    number = isinstance(prior, int | float) and not isinstance(prior, bool) and prior >= 0
    if prior != "auto" and not number:
        raise ValueError(f"expected prior to be 'auto' or a number of samples >= 0, got {prior!r}")
    if not 0 <= held_out < 1:
        raise ValueError(f"expected held_out from 0 to less than 1, got {held_out!r}")
    wanted = {"prior 'auto'": prior == "auto", "a metric": metric, "labels": labels is not None}
    for name, given in wanted.items():
        if given and not held_out:
            raise ValueError(f"{name} needs data that is held out, and held_out is 0")


@contextlib.contextmanager
def _opened(
    path: str | os.PathLike[str] | None, targets: Targets, source: Source, key: Mapping[str, Any]
) -> Iterator[Checkpoint | None]:
    if path is None:
        yield None
        return
    with Checkpoint.open(path, checkpoint_key(targets.model, source.fingerprint(), key)) as opened:
        yield opened


def _resumed(saved: Checkpoint | None) -> tuple[str, ...]:
    """Say how much an earlier run has measured already."""
    if saved is None or not saved.summary:
        return ()
    return (f"{saved.path}: went on from here, with {saved.summary} measured before",)


def _choose(
    prior: float | Literal["auto"],
    targets: Targets,
    statistics: Mapping[str, Observed],
    held: Source | None,
    scores: str | None,
    providers: Providers,
    num_threads: int | None,
) -> PriorChoice:
    if all(map(is_untouched, targets.targets)):
        reason = "the stored statistics are 0 and 1 in all nodes, as before any training: "
        return PriorChoice(0.0, 0.0, (), f"{reason}nothing is left of them")
    void = [target.name for target in targets.targets if is_void(target)]
    if prior != "auto":
        samples = min(observed.samples for observed in statistics.values())
        reason = f"nothing is left of the stored statistics of {void[0]!r}: {_VOID}" if void else ""
        return PriorChoice(float(prior), weight_of(float(prior), samples), (), reason)
    if void:
        reason = (
            f"the stored statistics of {void[0]!r} mean nothing ({_VOID}): nothing is left of any"
        )
        return PriorChoice(0.0, 0.0, (), reason)
    assert held is not None
    return choose_prior(
        targets, statistics, held, scores=scores, providers=providers, num_threads=num_threads
    )


def _in_eval_mode(targets: Targets) -> ir.Model:
    """The model with what it stores: onnxruntime's training mode spoils its own weights."""
    modes = {norm.name: norm.mode for norm in find_nodes(targets.model)}
    training = (t for t in targets.targets if any(modes[m] == "training" for m in t.members))
    stored = {t.name: (t.mean, t.var) for t in training}
    return apply_statistics(targets, stored) if stored else targets.model


def _input_change(
    targets: Targets, held: Source, providers: Providers, num_threads: int | None
) -> InputChange | None:
    """What change of the input would explain the drift; the held-out part is enough for that."""
    probe = InputProbe.find(targets, providers, num_threads)
    if probe is None:
        return None
    for feeds in held:
        probe.add(feeds)
    return probe.change()


def _action(choice: PriorChoice) -> str:
    if choice.weight == 1:
        return KEPT
    return "re-estimated" if choice.weight == 0 else f"{1 - choice.weight:.0%} re-estimated"
