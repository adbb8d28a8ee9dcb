"""PyTorch's own kernels."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.cases import EPS, MOMENTUM, buffer_like
from benchmarks.measure import Statement
from benchmarks.peers.base import Contender

if TYPE_CHECKING:
    import torch

ALL = [True, True, True]  # of dx, dweight and dbias


@functools.cache
def inference_mode() -> torch.inference_mode:
    """Enter it for the rest of the process: entering costs more than a small call."""
    import torch

    mode = torch.inference_mode()
    mode.__enter__()
    return mode  # cached: the mode ends with the object


def to_torch(array: np.ndarray) -> torch.Tensor:
    """View the array as a tensor; torch takes bfloat16 from NumPy by its bits alone."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """View the tensor as an array of its dtype."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtype)
    return tensor.numpy()


class Torch(Contender):
    """What people call; a fresh output each time, so above some size the kernel maps new pages."""

    name = "torch"
    family = "PyTorch"
    legend = (
        "torch.nn.functional.batch_norm, in backward aten.native_batch_norm_backward; "
        "inference_mode; its output is fresh memory each call; channels last: its memory format"
    )
    needs = "torch"
    modes = frozenset({"train", "eval", "backward", "call"})

    def prepare(self) -> Statement:
        import torch

        torch.set_num_threads(self.case.threads)
        inference_mode()
        data = self.data
        self._x = self._logical(data.x)
        self._parameters = {
            "weight": torch.from_numpy(data.weight.copy()),
            "bias": torch.from_numpy(data.bias.copy()),
            "mean": torch.from_numpy(data.running_mean.copy()),
            "var": torch.from_numpy(data.running_var.copy()),
        }
        self._call = self._backward() if self.case.mode == "backward" else self._forward()
        return self._call

    def output(self) -> np.ndarray:
        result = self._call()
        return self._physical(result[0] if isinstance(result, tuple) else result)

    def _forward(self) -> Statement:
        from torch.nn.functional import batch_norm

        return Statement(
            f"f(x, mean, var, weight, bias, {self.case.training}, {MOMENTUM}, {EPS})",
            f=batch_norm,
            x=self._x,
            **self._parameters,
        )

    def _backward(self) -> Statement:
        import torch

        return self._backward_statement(torch.ops.aten.native_batch_norm_backward.default, "")

    def _backward_statement(self, function: object, ending: str, **names: object) -> Statement:
        import torch

        gradient = self.data.gradient
        assert gradient is not None
        return Statement(
            f"f(dy, x, weight, mean, var, batch_mean, rstd, True, {EPS}, {ALL}{ending})",
            f=function,
            x=self._x,
            dy=self._logical(gradient.dy),
            batch_mean=torch.from_numpy(gradient.mean),
            rstd=torch.from_numpy(gradient.rstd),
            **self._parameters,
            **names,
        )

    def _logical(self, array: np.ndarray) -> torch.Tensor:
        """Channels last: (M, C) for ranks 2 and 3, torch's own memory format for 4 and 5."""
        tensor = to_torch(array)
        if self.case.layout == "first":
            return tensor
        if tensor.ndim <= 3:
            return tensor.view(-1, tensor.shape[-1])
        return tensor.movedim(-1, 1)

    def _physical(self, tensor: torch.Tensor) -> np.ndarray:
        array = from_torch(tensor, self.case.element)
        if self.case.layout == "first":
            return array
        if array.ndim <= 3:
            return array.reshape(self.data.x.shape)
        return np.moveaxis(array, 1, -1)


class TorchOut(Torch):
    """The same kernels without the cost of fresh memory, through operators few people know."""

    name = "torch out="
    legend = "torch.ops.aten.native_batch_norm.out, or its backward's, into buffers in use"
    modes = frozenset({"train", "eval", "backward"})

    def _forward(self) -> Statement:
        import torch

        training = self.case.training
        weight = self._parameters["weight"]
        saved = self.case.channels if training else 0
        return Statement(
            f"f(x, weight, bias, mean, var, {training}, {MOMENTUM}, {EPS}, "
            "out=out, save_mean=save_mean, save_invstd=save_invstd)",
            f=torch.ops.aten.native_batch_norm.out,
            x=self._x,
            out=self._logical(buffer_like(self.data.x)),
            save_mean=torch.empty(saved, dtype=weight.dtype),
            save_invstd=torch.empty(saved, dtype=weight.dtype),
            **self._parameters,
        )

    def _backward(self) -> Statement:
        import torch

        return self._backward_statement(
            torch.ops.aten.native_batch_norm_backward.out,
            ", out0=dx, out1=dweight, out2=dbias",
            dx=self._logical(buffer_like(self.data.x)),
            dweight=torch.zeros_like(self._parameters["weight"]),
            dbias=torch.zeros_like(self._parameters["bias"]),
        )
