"""The file of a statistics bank: what is in it, read and written."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cbn import __version__

from ...files import ModelError
from ...whole_file import WriteError, whole_file
from .fingerprint import Fingerprint, NodeMark

__all__ = ["NodeStatistics", "check_statistics", "read_statistics", "write_statistics"]

FORMAT = "cbn.statistics"
FORMAT_VERSION = "1"
CONVENTION = (
    "running_var is the population variance (ddof=0), which the node normalizes with, as ONNX has "
    "it; torch's running_var is n / (n - 1) of it"
)

_MEAN, _VAR = ".running_mean", ".running_var"
_FLOAT64 = np.dtype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class NodeStatistics:
    """What one node normalizes with.

    Attributes
    ----------
    mean, var : ndarray of float64, shape (C,)
        The mean and the population variance.
    count : int or None
        Values of each channel that they come from; None when nobody counted.
    samples : int or None
        Samples that they come from.
    """

    mean: np.ndarray
    var: np.ndarray
    count: int | None = None
    samples: int | None = None


def read_statistics(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NodeStatistics], Fingerprint, str, str]:
    """Read a file that `write_statistics` wrote.

    Returns
    -------
    tuple
        The statistics by node, the fingerprint of their model, the domain, and cbn's version.

    Raises
    ------
    ModelError
        When the file is missing, damaged or none of statistics.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise ModelError(f"{name}: no such file")
    try:
        with safe_open(name, framework="numpy") as archive:
            about = archive.metadata() or {}
            if about.get("format") != FORMAT:
                raise ModelError(f"{name}: no file of statistics, as cbn stats export writes it")
            if about.get("format_version") != FORMAT_VERSION:
                raise ModelError(
                    f"{name}: expected format version {FORMAT_VERSION}, got "
                    f"{about.get('format_version')}, of cbn {about.get('cbn_version')}"
                )
            # what safetensors opens is no mapping
            arrays = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        text = f"{name}: not a .safetensors file, or a damaged one: {error}"
        raise ModelError(text) from error
    try:
        return (
            _statistics(json.loads(about["counts"]), arrays),
            Fingerprint(
                about["fingerprint"],
                tuple(NodeMark(*mark) for mark in json.loads(about["nodes"])),
            ),
            about["domain"],
            about["cbn_version"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{name}: damaged: {error}") from error


def write_statistics(
    path: str | os.PathLike[str],
    statistics: Mapping[str, NodeStatistics],
    mark: Fingerprint,
    domain: str,
) -> None:
    """Write statistics as .safetensors, whole or not at all.

    Raises
    ------
    ModelError
        When it cannot be written.
    """
    arrays = {}
    for name, found in statistics.items():
        arrays[name + _MEAN] = np.ascontiguousarray(found.mean, np.float64)
        arrays[name + _VAR] = np.ascontiguousarray(found.var, np.float64)
    counts = {name: [found.count, found.samples] for name, found in statistics.items()}
    content = save(
        arrays,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "convention": CONVENTION,
            "cbn_version": __version__,
            "domain": domain,
            "fingerprint": mark.digest,
            "nodes": json.dumps([dataclasses.astuple(node) for node in mark.nodes]),
            "counts": json.dumps(counts),
        },
    )
    try:
        with whole_file(path) as written:
            written.write_bytes(content)
    except WriteError as error:
        raise ModelError(str(error)) from error


def check_statistics(name: str, mean: np.ndarray, var: np.ndarray) -> None:
    """Refuse statistics that nothing can be normalized with.

    Raises
    ------
    ModelError
        When a number is not finite or a variance negative.
    """
    if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
        raise ModelError(f"the statistics of {name!r} are not finite, or a variance is negative")


def _statistics(
    counts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, NodeStatistics]:
    found = {}
    for name, (count, samples) in counts.items():
        mean, var = arrays[name + _MEAN], arrays[name + _VAR]
        if mean.ndim != 1 or mean.shape != var.shape or {mean.dtype, var.dtype} != {_FLOAT64}:
            raise ValueError(f"expected mean and variance of {name!r} as float64 of one shape (C,)")
        check_statistics(name, mean, var)
        found[name] = NodeStatistics(mean, var, count, samples)
    if not found:
        raise ValueError("it holds no statistics")
    return found
