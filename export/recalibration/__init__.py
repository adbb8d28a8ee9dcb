"""Statistics from your own data: measure, blend, compare, and say whether it is safe."""

from __future__ import annotations

from .bank.bank import AppliedStatistics, NodeStatistics, StatisticsBank
from .data.images import ImageOptions
from .data.sources import Source, open_source
from .estimator import estimator
from .judge.blend import Candidate, PriorChoice, blend, choose_prior
from .judge.evidence import EvidenceReport, EvidenceRow
from .judge.heldout import HeldOut, Metric, top1
from .measure.checkpoint import CheckpointError
from .measure.executors import Progress
from .measure.observed import Observed
from .recalibrate import recalibrate
from .recalibration_result import RecalibrationResult
from .report.drift import drift
from .report.drift_report import DriftReport, DriftRow
from .report.page import write_page
from .rows import StatisticsRow

__all__ = [
    "AppliedStatistics",
    "Candidate",
    "CheckpointError",
    "DriftReport",
    "DriftRow",
    "EvidenceReport",
    "EvidenceRow",
    "HeldOut",
    "ImageOptions",
    "Metric",
    "NodeStatistics",
    "Observed",
    "PriorChoice",
    "Progress",
    "RecalibrationResult",
    "Source",
    "StatisticsBank",
    "StatisticsRow",
    "blend",
    "choose_prior",
    "drift",
    "estimator",
    "open_source",
    "recalibrate",
    "top1",
    "write_page",
]
