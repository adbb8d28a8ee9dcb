"""How far data is from the stored statistics of each layer: it looks, and changes nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any, get_args

import numpy as np

from ...files import ModelLike
from ...inputs import model_inputs
from ...nodes import find_nodes
from ...sessions import Providers
from ..data.images import ImageOptions
from ..data.sources import open_source
from ..measure.batch_pass import BatchPass
from ..measure.executors import Progress
from ..measure.instrument import Normalize
from ..measure.observed import Observed
from ..measure.samples import samples_in
from ..measure.targets import Target, Targets, choose_targets
from .drift_report import DriftMethod, DriftReport, DriftRow
from .first_layer import InputChange
from .input_probe import InputProbe
from .verdicts import verdicts

__all__ = ["DriftReport", "DriftRow", "drift", "drift_from"]

CONSTANT = 1e-10
"""Part of the square of its size that the variance of a constant may have: float32 rounds so."""

PROBED = 64
"""Batches, evenly spread over the data, that tell of the model's input: at least so many, and
fewer than twice as many."""


def drift(
    model: ModelLike,
    data: Any,
    *,
    method: Normalize = "stored",
    nodes: Collection[str] | None = None,
    batch_size: int | None = None,
    images: ImageOptions | str | os.PathLike[str] | None = None,
    limit: int | None = None,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> DriftReport:
    """Measure how far data is from what the batch norms of a model were trained on.

    One pass over the data; nothing is changed.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
    data : str, os.PathLike, mapping, array or iterable
        What ``open_source`` takes.
    method : {"stored", "batch"}, default: "stored"
        What the layers before the one that is measured normalize with: their stored statistics,
        as when the model is used (nodes in training mode do so too, here), or those of each batch.
    nodes : collection of str, optional
        Names or patterns, as for ``choose_targets``; all when None.
    batch_size, images, limit
        As for ``open_source``.
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
        As for ``make_session``.
    num_threads : int, optional
        For onnxruntime.
    progress : callable, optional
        Called as ``progress("measuring", batches done, batches in all)``.

    Returns
    -------
    DriftReport
        True when no layer drifts.

    Raises
    ------
    ModelError
        When the model cannot be read or run, or has no node that can be measured.
    DataError
        When the data cannot be read, does not fit, or makes NaN or infinity.
    ProviderError
        When a provider that was asked for is not in use.
    ValueError
        When `method` is none of the two.
    """
    targets = choose_targets(model, nodes)
    source = open_source(
        data, model_inputs(targets.model), batch_size=batch_size, images=images, limit=limit
    )
    measure = BatchPass(targets, normalize=method, providers=providers, num_threads=num_threads)
    probe = InputProbe.find(targets, providers, num_threads)
    total = None if source.samples is None else -(-source.samples // source.batch_size)
    every = max(1, (total or 0) // PROBED)
    seen: dict[str, Observed] = {}
    samples = 0
    for done, feeds in enumerate(source, 1):
        batch = measure(feeds, samples)
        seen = {name: seen[name] + found if seen else found for name, found in batch.items()}
        if probe is not None and (done - 1) % every == 0:
            probe.add(feeds)
        samples += samples_in(feeds)
        if progress is not None:
            progress("measuring", done, total)
    change = None if probe is None else probe.change()
    found = drift_from(targets, seen, method=method, inputs=change)
    return dataclasses.replace(found, notes=source.notes)


def drift_from(
    targets: Targets,
    statistics: Mapping[str, Observed],
    *,
    method: DriftMethod = "stored",
    inputs: InputChange | None = None,
) -> DriftReport:
    """Compare statistics that were observed with those that a model stores.

    Parameters
    ----------
    targets : Targets
        From ``choose_targets``.
    statistics : mapping of str to Observed
        What was seen of each target, by its name.
    method : {"stored", "batch", "sequential"}, default: "stored"
        How it was measured: see `DriftReport`.
    inputs : InputChange, optional
        What was found out about the model's input.

    Returns
    -------
    DriftReport

    Raises
    ------
    ValueError
        When `method` is none of these, or a target has no statistics or some of another size.
    """
    if method not in get_args(DriftMethod):
        accepted = ", ".join(map(repr, get_args(DriftMethod)))
        raise ValueError(f"expected method to be one of {accepted}, got {method!r}")
    nodes = {norm.name: (i, norm.mode) for i, norm in enumerate(find_nodes(targets.model), 1)}
    rows = [_row(target, _observed(target, statistics), nodes) for target in targets.targets]
    # NaN drifts most: it is no number that a network can go on with.
    order = sorted(range(len(rows)), key=lambda i: (-_sortable(rows[i].typical_kl), i))
    ranks = {index: rank for rank, index in enumerate(order, 1)}
    ranked = tuple(dataclasses.replace(row, rank=ranks[i]) for i, row in enumerate(rows))
    return DriftReport(
        ranked,
        verdicts=verdicts(ranked, inputs=inputs, refused=targets.refused),
        method=method,
        refused=targets.refused,
        inputs=inputs,
    )


def _observed(target: Target, statistics: Mapping[str, Observed]) -> Observed:
    if target.name not in statistics:
        raise ValueError(f"statistics: expected some of {target.name!r}, got none")
    observed = statistics[target.name]
    if observed.values.mean.shape != (target.channels,):
        raise ValueError(
            f"statistics: expected {target.channels} channels of {target.name!r}, "
            f"got {observed.values.mean.size}"
        )
    return observed


def _row(target: Target, seen: Observed, nodes: Mapping[str, tuple[int, str]]) -> DriftRow:
    mean, var = seen.values.mean, seen.values.var
    with np.errstate(all="ignore"):  # what is not finite is shown as such
        base = target.var + target.eps
        shift = (mean - target.mean) / np.sqrt(base)
        ratio = (var + target.eps) / base
        kl = (ratio + 1 / ratio - 2 + shift**2 * (1 + 1 / ratio)) / 2
        # To the first order, were the stored statistics those of this data.
        spread = var + target.eps
        chance = seen.mean_error**2 / spread + (seen.var_error / spread) ** 2 / 2
    worst = int(np.argmax(np.abs(shift)))
    size = target.mean**2 + mean**2
    return DriftRow(
        name=target.name,
        members=target.members,
        position=nodes[target.name][0],
        channels=target.channels,
        samples=seen.samples,
        observations=seen.values.count,
        eps=target.eps,
        stored_mean=target.mean,
        stored_var=target.var,
        observed_mean=mean,
        observed_var=var,
        mean_error=seen.mean_error,
        var_error=seen.var_error,
        shift=shift,
        var_ratio=ratio,
        kl=kl,
        typical_shift=float(np.median(np.abs(shift))),
        typical_ratio=float(np.median(ratio)),
        typical_kl=float(np.median(kl)),
        largest_shift=float(shift[worst]),
        largest_channel=worst,
        chance=float(np.median(chance)),
        dead=_where((var <= CONSTANT * (size + target.var)) & (target.var > target.eps)),
        awake=_where((target.var <= CONSTANT * (size + var)) & (var > target.eps)),
        untouched=not target.mean.any() and bool((target.var == 1).all()),
        training=any(nodes[member][1] == "training" for member in target.members),
    )


def _where(chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(int(channel) for channel in np.flatnonzero(chosen))


def _sortable(value: float) -> float:
    return np.inf if np.isnan(value) else value
