"""cbn: batch normalization without a training framework, for people who ship models.

Needs NumPy alone; ``cbn.export`` (ONNX) comes with ``pip install "cbn[onnx]"``.
"""

import importlib.util as _util

if _util.find_spec(f"{__name__}._kernels") is None:
    raise ImportError(
        f"{__path__[0]} is the source of cbn, without compiled kernels: start Python in another "
        "folder to use the installed package, or build them here with `pip install -e .`"
    )

from ._info import build_info
from ._version import __version__
from .functional import batch_norm, batch_norm_backward
from .layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .scale_shift import ScaleShift
from .stats import BatchStats, batch_stats

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchStats",
    "ScaleShift",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "batch_stats",
    "build_info",
]
