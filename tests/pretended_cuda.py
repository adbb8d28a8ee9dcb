"""An onnxruntime that claims to run models on CUDA: the CPU runs them, and where is made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import onnx
import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclasses.dataclass(frozen=True)
class PlacedNode:
    name: str
    op_type: str
    domain: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    ep_name: str
    nodes: tuple[PlacedNode, ...]

    def get_nodes(self) -> tuple[PlacedNode, ...]:
        return self.nodes


class PretendedCuda:
    """Replaces ``onnxruntime.InferenceSession`` by one that runs on the CPU and tells otherwise.

    Parameters
    ----------
    on_cpu : collection of str
        Names of the nodes, or operators, that it says to have left on the CPU.
    change : callable, optional
        Changes the model, in place, that is run: what the pretended kernels get wrong.
    """

    def __init__(
        self,
        on_cpu: Collection[str] = (),
        change: Callable[[onnx.ModelProto], None] | None = None,
    ) -> None:
        self.on_cpu = set(on_cpu)
        self.change = change
        self.asked: list[Any] = []
        self._real = onnxruntime.InferenceSession

    def __call__(self, content: Any, options: Any, providers: Any, **kwargs: Any) -> Any:
        self.asked.append(providers)
        names = [item if isinstance(item, str) else item[0] for item in providers]
        model = onnx.load_model_from_string(content)
        if CUDA in names and self.change is not None:
            self.change(model)
        real = self._real(model.SerializeToString(), options, providers=[CPU], **kwargs)
        return _Session(real, self.on_cpu) if CUDA in names else real


class _Session:
    def __init__(self, real: Any, on_cpu: Collection[str]) -> None:
        self._real = real
        self._on_cpu = on_cpu

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Part]:
        parts = self._real.get_provider_graph_assignment_info()
        told = [node for part in parts for node in part.get_nodes()]
        nodes = [PlacedNode(node.name, node.op_type, node.domain) for node in told]
        here = tuple(n for n in nodes if {n.name, n.op_type} & set(self._on_cpu))
        there = tuple(n for n in nodes if n not in here)
        return [Part(CPU, here), Part(CUDA, there)]
