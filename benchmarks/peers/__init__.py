"""The contenders. To add one, write its class in a module here and list it below."""

from __future__ import annotations

from benchmarks.peers.base import Contender, Unsupported
from benchmarks.peers.cbn_layers import Cbn, CbnFresh, CbnFunction, CbnLayer, CbnLayerFresh
from benchmarks.peers.onednn import OneDnnFirst, OneDnnLast
from benchmarks.peers.onnx_runtime import OnnxRuntime, OnnxRuntimeRun
from benchmarks.peers.plain_copy import Copy
from benchmarks.peers.plain_numpy import NumPy
from benchmarks.peers.pytorch import Torch, TorchOut
from benchmarks.peers.pytorch_mkldnn import TorchMkldnn

__all__ = ["CONTENDERS", "FAMILIES", "Contender", "Unsupported"]

CONTENDERS: tuple[type[Contender], ...] = (
    Copy,
    Cbn,
    CbnFresh,
    CbnLayer,
    CbnLayerFresh,
    CbnFunction,
    Torch,
    TorchOut,
    TorchMkldnn,
    OneDnnFirst,
    OneDnnLast,
    OnnxRuntime,
    OnnxRuntimeRun,
    NumPy,
)
FAMILIES = {kind.name: kind.family for kind in CONTENDERS}
