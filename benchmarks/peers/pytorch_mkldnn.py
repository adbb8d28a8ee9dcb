"""oneDNN as PyTorch reaches it, through mkldnn tensors."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case
from benchmarks.measure import Statement
from benchmarks.peers.pytorch import Torch


class TorchMkldnn(Torch):
    """PyTorch keeps such a tensor in plain NCHW, for which oneDNN has no JIT kernel."""

    name = "torch mkldnn"
    family = "oneDNN"
    legend = "torch.nn.functional.batch_norm of x.to_mkldnn(): oneDNN's code for plain NCHW"
    modes = frozenset({"train", "eval"})
    dtypes = frozenset({"float32"})

    @classmethod
    def installed(cls) -> bool:
        if not super().installed():
            return False
        import torch

        return torch.backends.mkldnn.is_available()

    @classmethod
    def takes(cls, case: Case) -> bool:
        ranks = (4,) if case.training else (4, 5)  # what torch has an entry for
        return super().takes(case) and case.layout == "first" and len(case.shape) in ranks

    def output(self) -> np.ndarray:
        return self._call().to_dense().numpy()

    def _forward(self) -> Statement:
        self._x = self._x.to_mkldnn()
        return super()._forward()
