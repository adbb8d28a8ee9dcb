"""PyTorch's own kernels. (oneDNN's, through mkldnn tensors, would be one more class here.)"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.cases import EPS, MOMENTUM
from benchmarks.peers.base import Contender

if TYPE_CHECKING:
    import torch


@functools.cache
def inference_mode() -> torch.inference_mode:
    """Enter it for the rest of the process: entering costs more than a small call."""
    import torch

    mode = torch.inference_mode()
    mode.__enter__()
    return mode  # cached: the mode ends with the object


class Torch(Contender):
    """What people call; a fresh output each time, so above some size the kernel maps new pages."""

    name = "torch"
    legend = "torch.nn.functional.batch_norm, inference_mode; its output is fresh memory each call"
    needs = "torch"

    def prepare(self) -> Callable[[], object]:
        import torch

        torch.set_num_threads(self.case.threads)
        inference_mode()
        data = self.data
        self._x = self._logical(torch.from_numpy(data.x))
        weight, bias, mean, var = (
            torch.from_numpy(array.copy())
            for array in (data.weight, data.bias, data.running_mean, data.running_var)
        )
        self._run = self._call(weight, bias, mean, var)
        return self._run

    def output(self) -> np.ndarray:
        return self._physical(self._run()).numpy()

    def _call(
        self, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        from torch.nn.functional import batch_norm

        training = self.case.training
        return functools.partial(
            batch_norm, self._x, mean, var, weight, bias, training, MOMENTUM, EPS
        )

    def _logical(self, tensor: torch.Tensor) -> torch.Tensor:
        """Channels last: (M, C) for ranks 2 and 3, torch's own memory format for 4 and 5."""
        if self.case.layout == "first":
            return tensor
        if tensor.ndim <= 3:
            return tensor.view(-1, tensor.shape[-1])
        return tensor.movedim(-1, 1)

    def _physical(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.case.layout == "first":
            return tensor
        if tensor.ndim <= 3:
            return tensor.reshape(self.data.x.shape)
        return tensor.movedim(1, -1)


class TorchOut(Torch):
    """The same kernels without the cost of fresh memory, through an operator few people know."""

    name = "torch out="
    legend = "torch.ops.aten.native_batch_norm.out into buffers in use"
    modes = frozenset({"train", "eval"})

    def _call(
        self, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        import torch

        training = self.case.training
        saved = self.case.channels if training else 0
        self._out = torch.zeros_like(self._x)
        call = functools.partial(
            torch.ops.aten.native_batch_norm.out,
            *(self._x, weight, bias, mean, var, training, MOMENTUM, EPS),
            out=self._out,
            save_mean=torch.empty(saved, dtype=weight.dtype),
            save_invstd=torch.empty(saved, dtype=weight.dtype),
        )
        return lambda: call()[0]
