"""The contenders. To add one, write its class in a module here and list it below."""

from __future__ import annotations

from benchmarks.peers.base import Contender
from benchmarks.peers.cbn_layers import Cbn, CbnLayer
from benchmarks.peers.onnx_runtime import OnnxRuntime
from benchmarks.peers.plain_copy import Copy
from benchmarks.peers.plain_numpy import NumPy
from benchmarks.peers.pytorch import Torch, TorchOut

__all__ = ["CONTENDERS", "Contender"]

CONTENDERS: tuple[type[Contender], ...] = (
    Copy,
    Cbn,
    CbnLayer,
    Torch,
    TorchOut,
    OnnxRuntime,
    NumPy,
)
