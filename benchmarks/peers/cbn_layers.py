"""cbn: its layers, its fused scale and shift, its gradient, and in a small call its function."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from benchmarks.cases import EPS, MOMENTUM, buffer_like
from benchmarks.measure import Statement
from benchmarks.peers.base import Contender


class Cbn(Contender):
    name = "cbn"
    family = "cbn"
    legend = (
        "with out=, into a buffer in use: the layer in train and eval, its backward after a "
        "training forward, the fused ScaleShift in call"
    )
    needs = "cbn"
    modes = frozenset({"train", "eval", "backward", "call"})
    layer: ClassVar[bool] = False  # whether it is the layer in call too
    own_statistics = True
    fresh: ClassVar[bool] = False  # whether each call makes its output

    def prepare(self) -> Statement:
        self._call = self._statement(buffer_like(self.data.x))
        return self._call

    def output(self) -> np.ndarray:
        result = self._call()
        return result[0] if self.case.mode == "backward" else result

    def _statement(self, out: np.ndarray) -> Statement:

        data = self.data
        ending = ")" if self.fresh else ", out=out)"
        function = self._layer()
        if data.gradient is not None:
            function.train()(data.x)
            return Statement("f(dy" + ending, f=function.backward, dy=data.gradient.dy, out=out)
        if self.case.mode == "call" and not self.layer:
            function = function.fuse(dtype=self.case.element)
        return Statement("f(x" + ending, f=function, x=data.x, out=out)

    def _num_threads(self) -> int | None:
        """None, as users leave it, if that means the number asked for."""
        import cbn

        threads = self.case.threads
        return None if cbn.build_info()["threads"] == threads else threads

    def _layer(self) -> Any:
        import cbn

        case, data = self.case, self.data
        rank = len(case.shape)
        kind = {4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}.get(rank, cbn.BatchNorm1d)
        layer = kind(
            case.channels,
            eps=EPS,
            momentum=MOMENTUM,
            dtype=case.parameter_dtype,
            channels_last=case.layout == "last" and rank > 2,
            num_threads=self._num_threads(),
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


class CbnFresh(Cbn):
    name = "cbn new"
    legend = "the same without out=: a fresh output each call"
    fresh = True


class CbnLayer(Cbn):
    name = "cbn layer"
    legend = "the layer in eval mode, with out="
    modes = frozenset({"call"})
    layer = True


class CbnLayerFresh(CbnLayer):
    name = "cbn layer new"
    legend = "the layer in eval mode, a fresh output each call"
    fresh = True


class CbnFunction(Cbn):
    name = "cbn function"
    legend = "cbn.batch_norm in eval, with out="
    modes = frozenset({"call"})

    def _statement(self, out: np.ndarray) -> Statement:
        import cbn

        data = self.data
        return Statement(
            "f(x, mean, var, weight, bias, eps=eps, axis=axis, out=out)",
            f=cbn.batch_norm,
            x=data.x,
            mean=data.running_mean,
            var=data.running_var,
            weight=data.weight,
            bias=data.bias,
            eps=EPS,
            axis=self.case.channel_axis,
            out=out,
        )
