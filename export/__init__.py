"""ONNX models with BatchNormalization: build, read, run, inspect and check them.

Needs what the extra ``cbn[onnx]`` (or ``cbn[gpu]``) installs; cbn itself does not.
"""

from __future__ import annotations

try:
    import onnx as _onnx  # noqa: F401
    import onnx_ir as _onnx_ir  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f'cbn.export needs the package {error.name}: pip install "cbn[onnx]", '
        'or "cbn[gpu]" for CUDA'
    ) from error

from .build import to_onnx
from .check import CrosscheckReport, CrosscheckRow, crosscheck
from .files import ModelError, load, save
from .inspection import InspectReport, InspectRow, Remark, inspect
from .nodes import BatchNormNode, find_nodes
from .read import from_onnx
from .results import Report
from .sessions import ProviderError, make_session

__all__ = [
    "BatchNormNode",
    "CrosscheckReport",
    "CrosscheckRow",
    "InspectReport",
    "InspectRow",
    "ModelError",
    "ProviderError",
    "Remark",
    "Report",
    "crosscheck",
    "find_nodes",
    "from_onnx",
    "inspect",
    "load",
    "make_session",
    "save",
    "to_onnx",
]
