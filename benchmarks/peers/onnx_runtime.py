"""onnxruntime on the CPU."""

from __future__ import annotations

import importlib.util

import numpy as np

from benchmarks.cases import EPS, MOMENTUM, buffer_like
from benchmarks.measure import Statement
from benchmarks.peers.base import Contender


class OnnxRuntime(Contender):
    name = "onnxruntime"
    family = "onnxruntime"
    legend = (
        "a one-node model on the CPU provider, input and output bound (channels last: as (M, C))"
    )
    needs = "onnxruntime"
    dtypes = frozenset({"float32", "float64"})  # what the CPU provider has kernels for

    @classmethod
    def installed(cls) -> bool:
        return super().installed() and importlib.util.find_spec("onnx") is not None

    def prepare(self) -> Statement:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.case.threads
        x = self.data.x
        if self.case.layout == "last":
            x = x.reshape(-1, x.shape[-1])
        self._out = buffer_like(x)
        self._x = x
        self._session = onnxruntime.InferenceSession(
            self._model(x), options, providers=["CPUExecutionProvider"]
        )
        return self._statement()

    def output(self) -> np.ndarray:
        return self._out.reshape(self.data.x.shape)

    def _statement(self) -> Statement:
        import onnxruntime

        binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        binding.bind_ortvalue_input("x", value(self._x))
        binding.bind_ortvalue_output("y", value(self._out))
        return Statement("f(binding)", f=self._session.run_with_iobinding, binding=binding)

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


class OnnxRuntimeRun(OnnxRuntime):
    name = "onnxruntime run"
    legend = "the same by session.run, which makes its output"
    modes = frozenset({"call"})

    def output(self) -> np.ndarray:
        return self._call()[0].reshape(self.data.x.shape)

    def _statement(self) -> Statement:
        self._call = Statement('f(None, {"x": x})', f=self._session.run, x=self._x)
        return self._call
