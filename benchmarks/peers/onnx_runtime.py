"""onnxruntime on the CPU."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import numpy as np

from benchmarks.cases import EPS, MOMENTUM
from benchmarks.peers.base import Contender


class OnnxRuntime(Contender):
    name = "onnxruntime"
    legend = (
        "a one-node model on the CPU provider, input and output bound (channels last: as (M, C))"
    )
    needs = "onnxruntime"

    @classmethod
    def installed(cls) -> bool:
        return super().installed() and importlib.util.find_spec("onnx") is not None

    def prepare(self) -> Callable[[], object]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.case.threads
        x = self.data.x
        if self.case.layout == "last":
            x = x.reshape(-1, x.shape[-1])
        self._out = np.zeros_like(x)
        self._session = onnxruntime.InferenceSession(
            self._model(x), options, providers=["CPUExecutionProvider"]
        )
        binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        binding.bind_ortvalue_input("x", value(x))
        binding.bind_ortvalue_output("y", value(self._out))
        self._keep = x
        return functools.partial(self._session.run_with_iobinding, binding)

    def output(self) -> np.ndarray:
        return self._out.reshape(self.data.x.shape)

    def _model(self, x: np.ndarray) -> bytes:
        from onnx import checker, helper, numpy_helper

        data = self.data
        element = helper.np_dtype_to_tensor_dtype(x.dtype)
        training = self.case.training
        node = helper.make_node(
            "BatchNormalization",
            ["x", "scale", "bias", "mean", "var"],
            ["y", "new_mean", "new_var"] if training else ["y"],
            epsilon=EPS,
            momentum=1 - MOMENTUM,
            training_mode=int(training),
        )
        parameters = {
            "scale": data.weight,
            "bias": data.bias,
            "mean": data.running_mean,
            "var": data.running_var,
        }
        graph = helper.make_graph(
            [node],
            "batch_norm",
            [helper.make_tensor_value_info("x", element, x.shape)],
            [helper.make_tensor_value_info("y", element, x.shape)],
            [numpy_helper.from_array(array, name) for name, array in parameters.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
        checker.check_model(model)
        return model.SerializeToString()
