"""cbn: its layers and its fused scale and shift."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import EPS, MOMENTUM
from benchmarks.peers.base import Contender


class Cbn(Contender):
    name = "cbn"
    legend = "the layer with out= in train and eval, the fused ScaleShift with out= in call"
    needs = "cbn"

    def prepare(self) -> Callable[[], object]:
        self._out = np.zeros_like(self.data.x)
        function = self._function()
        return functools.partial(function, self.data.x, out=self._out)

    def output(self) -> np.ndarray:
        return self._out

    def _function(self) -> Callable[..., Any]:
        layer = self._layer()
        return layer.fuse() if self.case.mode == "call" else layer

    def _layer(self) -> Any:
        import cbn

        case, data = self.case, self.data
        rank = len(case.shape)
        kind = {4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}.get(rank, cbn.BatchNorm1d)
        layer = kind(
            case.channels,
            eps=EPS,
            momentum=MOMENTUM,
            dtype=case.dtype,
            channels_last=case.layout == "last" and rank > 2,
            num_threads=case.threads,
        )
        layer.load_state_dict(
            {
                "weight": data.weight,
                "bias": data.bias,
                "running_mean": data.running_mean,
                "running_var": data.running_var,
                "num_batches_tracked": 0,
            }
        )
        return layer.train() if case.training else layer.eval()


class CbnLayer(Cbn):
    name = "cbn layer"
    legend = "the layer in eval mode, with out="
    modes = frozenset({"call"})

    def _function(self) -> Callable[..., Any]:
        return self._layer()
