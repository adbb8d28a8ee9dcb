"""Running statistics kept apart from their model: a small file for each domain."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import onnx_ir as ir

from ...files import ModelError, ModelLike, load
from ...results import Report, to_plain
from ...rewrite import KEPT
from ..apply import apply_statistics
from ..judge.blend import weight_of
from ..measure.observed import Observed
from ..measure.targets import Targets, choose_targets
from ..rows import COLUMNS, StatisticsRow, rows_of
from .bank_file import NodeStatistics, check_statistics, read_statistics, write_statistics
from .fingerprint import Fingerprint, fingerprint

__all__ = ["AppliedStatistics", "NodeStatistics", "StatisticsBank"]


@dataclasses.dataclass(frozen=True)
class AppliedStatistics(Report):
    """A model with other statistics, and a row for each node.

    Attributes
    ----------
    rows : tuple of StatisticsRow
        Not ok: nodes without statistics, and statistics without a node.
    model : onnx_ir.Model
    notes : tuple of str
        What else was done to the model, or is to be known.
    """

    rows: tuple[StatisticsRow, ...]
    model: ir.Model = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    def to_dict(self) -> dict[str, Any]:
        """The report for ``json.dumps``, without the model."""
        return {"ok": self.ok, "rows": to_plain(self.rows), "notes": list(self.notes)}


@dataclasses.dataclass(frozen=True, eq=False)
class StatisticsBank:
    """The running statistics of a model in one domain: a camera, a site, the night.

    Attributes
    ----------
    statistics : mapping of str to NodeStatistics
        By the names of the nodes, as ``find_nodes`` gives them; nodes that share their statistics
        stand under the name of the first.
    fingerprint : Fingerprint
        Of the model that they are for.
    domain : str
        What they are of, in the user's words.
    written_by : str
        The version of cbn that wrote the file.
    """

    statistics: Mapping[str, NodeStatistics]
    fingerprint: Fingerprint
    domain: str = ""
    written_by: str = ""

    @classmethod
    def of_model(
        cls,
        model: ModelLike,
        domain: str = "",
        observed: Mapping[str, Observed] | None = None,
    ) -> Self:
        """Take the statistics that a model holds.

        Parameters
        ----------
        model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        domain : str, optional
        observed : mapping of str to Observed, optional
            What was seen when they were estimated: its counts are kept.

        Raises
        ------
        ModelError
            When the model cannot be read, no node has statistics that the file fixes, or some are
            NaN, infinite or negative variances.
        """
        targets = choose_targets(model)
        seen = observed or {}
        statistics = {}
        for target in targets.targets:
            check_statistics(target.name, target.mean, target.var)
            counted = seen.get(target.name)
            statistics[target.name] = NodeStatistics(
                target.mean,
                target.var,
                counted.values.count if counted else None,
                counted.samples if counted else None,
            )
        return cls(statistics, fingerprint(targets.model), domain)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises
        ------
        ModelError
            When the file is missing, damaged or none of statistics.
        """
        return cls(*read_statistics(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file, whole or not at all.

        It holds ``<node>.running_mean`` and ``<node>.running_var``, float64 of shape (C,), and in
        its metadata the fingerprint, the convention, the counts, the domain and cbn's version.

        Raises
        ------
        ModelError
            When it cannot be written.
        """
        write_statistics(path, self.statistics, self.fingerprint, self.domain)

    def apply(self, model: ModelLike, *, force: bool = False) -> AppliedStatistics:
        """Give the statistics to a model; its weights stay as they are.

        Parameters
        ----------
        model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
            The model; it is not changed.
        force : bool, default: False
            Take a model with another fingerprint too: statistics go to the nodes of the same name
            and number of channels.

        Returns
        -------
        AppliedStatistics
            Nodes in training mode that get statistics are in eval mode in its model.

        Raises
        ------
        ModelError
            When the model cannot be read, has another fingerprint, or no node takes statistics.
        """
        opened = load(model)
        difference = self.fingerprint.difference(fingerprint(opened))
        if difference is not None and not force:
            raise ModelError(f"the statistics were made for another model: {difference}")
        found = choose_targets(opened)
        left = self._without_partner(found)
        chosen = tuple(target for target in found.targets if target.name not in left)
        if not chosen:
            raise ModelError(f"no node takes the statistics: {'; '.join(left.values())}")
        targets = dataclasses.replace(found, targets=chosen)
        moments = {
            target.name: (self.statistics[target.name].mean, self.statistics[target.name].var)
            for target in chosen
        }
        rows = rows_of(targets, moments, "given statistics", left, failed=True)
        known = {row.name for row in rows}
        lost = [
            StatisticsRow(name, KEPT, self.statistics[name].mean.size, reason=reason, ok=False)
            for name, reason in left.items()
            if name not in known
        ]
        notes = found.notes if difference is None else (*found.notes, f"forced: {difference}")
        return AppliedStatistics((*rows, *lost), apply_statistics(targets, moments), notes)

    def _without_partner(self, targets: Targets) -> dict[str, str]:
        """The nodes of the model and of the bank that have no partner, each with the reason."""
        channels = {target.name: target.channels for target in targets.targets}
        refused = dict(targets.refused)
        left = {}
        for name in {**channels, **refused, **self.statistics}:
            if name not in self.statistics:
                left[name] = refused.get(name, "the file has no statistics for it")
            elif name not in channels:
                left[name] = refused.get(name, "the model has no such node")
            elif channels[name] != self.statistics[name].mean.size:
                left[name] = (
                    f"it has {channels[name]} channels, its statistics "
                    f"{self.statistics[name].mean.size}"
                )
        return left

    def blend(self, other: StatisticsBank, weight: float) -> StatisticsBank:
        """Mix with the statistics of another domain, as ``recalibrate`` does with the stored ones.

        Means and variances are averaged alike (Schneider et al., NeurIPS 2020, equation 2).

        Parameters
        ----------
        other : StatisticsBank
            Of the same model.
        weight : float
            The share of `other`, from 0 to 1.

        Raises
        ------
        ModelError
            When the other one is of another model, or lacks a node.
        ValueError
            When the weight is not from 0 to 1.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"expected a weight from 0 to 1, got {weight}")
        difference = self.fingerprint.difference(other.fingerprint)
        if difference is not None:
            raise ModelError(f"the second file is of another model: {difference}")
        if lone := sorted(self.statistics.keys() ^ other.statistics.keys()):
            raise ModelError(f"only one of the files has statistics of node {lone[0]!r}")
        mixed = {}
        for name, mine in self.statistics.items():
            theirs = other.statistics[name]
            mixed[name] = NodeStatistics(
                (1 - weight) * mine.mean + weight * theirs.mean,
                (1 - weight) * mine.var + weight * theirs.var,
            )
        shares = ((self.domain, 1 - weight), (other.domain, weight))
        domain = " + ".join(f"{share:.3g} {name or 'unnamed'}" for name, share in shares)
        return StatisticsBank(mixed, self.fingerprint, domain)

    def share_beside(self, prior: float) -> float:
        """The share of these statistics beside others that count as `prior` samples.

        Raises
        ------
        ModelError
            When nobody counted the samples that these come from.
        """
        counts = {found.samples for found in self.statistics.values()}
        if None in counts:
            raise ModelError(
                "a prior needs the number of samples, which cbn recalibrate --stats writes down "
                "and the statistics of a model do not tell: give a weight"
            )
        return 1 - weight_of(prior, min(int(count or 0) for count in counts))
