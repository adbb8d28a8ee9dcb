"""ONNX models with BatchNormalization: build, read, run, check, repair and re-estimate them.

Needs what the extra ``cbn[onnx]`` (or ``cbn[gpu]``) installs; cbn itself does not.
"""

from __future__ import annotations

try:
    import onnx as _onnx  # noqa: F401  # only to name what is missing
    import onnx_ir as _onnx_ir  # noqa: F401  # the same
except ModuleNotFoundError as error:
    raise ImportError(
        f'cbn.export needs the package {error.name}: pip install "cbn[onnx]", '
        'or "cbn[gpu]" for CUDA'
    ) from error

from .bound import BoundSession
from .build import to_onnx
from .check import CrosscheckReport, CrosscheckRow, crosscheck
from .data import DataError
from .files import ModelError, load, save
from .folding import fold
from .freeze import freeze
from .inspection import InspectReport, InspectRow, inspect
from .lint import LintReport, LintRow, lint
from .lower import lower
from .nodes import BatchNormNode, find_nodes
from .proof import ProofReport, ProofRow, prove
from .read import from_onnx
from .recalibration import (
    CheckpointError,
    DriftReport,
    HeldOut,
    ImageOptions,
    RecalibrationResult,
    StatisticsBank,
    drift,
    recalibrate,
)
from .remarks import REMARKS, Remark
from .results import Report
from .rewrite import Difference, RewriteResult, RewriteRow
from .sessions import ProviderError, make_session

__all__ = [
    "REMARKS",
    "BatchNormNode",
    "BoundSession",
    "CheckpointError",
    "CrosscheckReport",
    "CrosscheckRow",
    "DataError",
    "Difference",
    "DriftReport",
    "HeldOut",
    "ImageOptions",
    "InspectReport",
    "InspectRow",
    "LintReport",
    "LintRow",
    "ModelError",
    "ProofReport",
    "ProofRow",
    "ProviderError",
    "RecalibrationResult",
    "Remark",
    "Report",
    "RewriteResult",
    "RewriteRow",
    "StatisticsBank",
    "crosscheck",
    "drift",
    "find_nodes",
    "fold",
    "freeze",
    "from_onnx",
    "inspect",
    "lint",
    "load",
    "lower",
    "make_session",
    "prove",
    "recalibrate",
    "save",
    "to_onnx",
]
