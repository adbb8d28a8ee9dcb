"""Run one stage: its batch norms by cbn, the rest of it as a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import cbn

from ...files import ModelError
from ...sessions import Providers, make_session, run_session
from ..apply import rounded
from .normalized import Normalized
from .stages import Moments, Plan, Stage, reads_of

__all__ = ["StageRun"]


class StageRun:
    """A stage that is ready to run over batches.

    Parameters
    ----------
    plan : Plan
    stage : Stage
        One of the plan's.
    corrected : mapping of str to (mean, var)
        Statistics of the targets measured so far, float64 of shape (C,); rounded here to the type
        that the model stores them in.
    providers : {"cpu", "cuda", "auto"} or list
    num_threads : int or None
        For onnxruntime and for cbn.

    Raises
    ------
    ModelError
        When statistics do not fit.
    """

    def __init__(
        self,
        plan: Plan,
        stage: Stage,
        corrected: Mapping[str, Moments],
        providers: Providers,
        num_threads: int | None,
    ) -> None:
        self._plan = plan
        self._stage = stage
        self._rounded = {
            t.name: rounded(t, *corrected[t.name]) for t in plan.targets if t.name in corrected
        }
        self._providers = providers
        self._num_threads = num_threads
        self._maps: dict[str, cbn.ScaleShift] = {}
        self._session: Any = None

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch.

        Parameters
        ----------
        given : mapping of str to numpy.ndarray
            What the stage wants. Arrays that nothing else reads are overwritten.

        Returns
        -------
        dict of str to numpy.ndarray
            What the stage makes, by value.

        Raises
        ------
        ModelError
            When onnxruntime cannot load or run the stage, or a value that it needs from another
            stage, or that is measured, is no tensor or of bfloat16.
        """
        made = {norm.y: self._normalize(norm, given[norm.x]) for norm in self._stage.normalized}
        if not self._stage.outputs:
            return made
        feeds = {name: made[name] if name in made else given[name] for name in self._stage.inputs}
        if self._session is None:
            model = _build(self._plan, self._stage, self._rounded, feeds)
            session = make_session(model, self._providers, num_threads=self._num_threads)
            for output in session.get_outputs():
                if output.type == "tensor(bfloat16)":
                    raise ModelError(
                        f"value {output.name!r} is of bfloat16, which onnxruntime does not give "
                        "out, and the sweep has to see it; method 'batch' need not"
                    )
            self._session = session
        outputs = run_session(self._session, feeds)
        for name, value in outputs.items():
            if not isinstance(value, np.ndarray):
                raise ModelError(
                    f"value {name!r} is no tensor, and the sweep has to keep it from one batch "
                    "norm to the next; method 'batch' need not"
                )
        return made | outputs

    def _normalize(self, norm: Normalized, x: np.ndarray) -> np.ndarray:
        if norm.y not in self._maps:
            try:
                self._maps[norm.y] = norm.map(
                    *self._rounded[norm.target], x.dtype, self._num_threads
                )
            except ValueError as error:
                raise ModelError(f"BatchNormalization {norm.target!r}: {error}") from error
        out = x if norm.in_place and x.flags.writeable else None
        return np.asarray(self._maps[norm.y](x, out))


def _build(
    plan: Plan,
    stage: Stage,
    corrected: Mapping[str, Moments],
    like: Mapping[str, np.ndarray],
) -> ir.Model:
    """Make the model of a stage; it shares the weights, and those in files stay there.

    `like` has the arrays that go into its inputs, for their types and numbers of dimensions.
    """
    replaced: dict[str, np.ndarray] = {}
    for target, pair in corrected.items():
        replaced |= dict(zip(plan.statistics[target], pair, strict=True))
    proto = onnx.ModelProto(ir_version=plan.model.ir_version)
    for domain, version in plan.model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.to_proto(f) for f in plan.model.functions.values())
    proto.graph.name = "stage"
    proto.graph.node.extend(ir.to_proto(node) for node in stage.nodes)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in stage.outputs)
    proto.graph.input.extend(_describe(name, like[name]) for name in stage.inputs)
    tensors = dict(_weights(plan, stage, replaced))
    for name, tensor in tensors.items():
        proto.graph.input.add(name=name).type.tensor_type.elem_type = tensor.dtype.value
    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in tensors]:
        model.graph.inputs.remove(value)
        value.const_value = tensors[str(value.name)]
        model.graph.register_initializer(value)
    return model


def _weights(
    plan: Plan, stage: Stage, replaced: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for node in stage.nodes:
        for value in reads_of(node, plan.model.graph):
            name = str(value.name)
            if name in replaced:
                yield name, ir.tensor(replaced[name], name=name)
            elif value.is_initializer() and value.const_value is not None:
                yield name, value.const_value


def _describe(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim)
