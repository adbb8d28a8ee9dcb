"""A constant is found through whatever only copies or reshapes it, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbn.export.constants import Constant, resolve
from cbn.export.files import ModelError, load

VALUES = np.array([1.5, -2.0, 3.25], np.float32)


def resolved(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, np.ndarray] | None = None,
    also_inputs: Sequence[str] = (),
    opset: int = 15,
) -> Constant:
    """What the value "c" of the main graph resolves to."""
    last = helper.make_node("Add", ["x", "c"], ["y"])
    proto = onnx_models.plain_model([*nodes, last], initializers or {}, opset=opset)
    for name in also_inputs:
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]))
    return resolve(load(proto).graph[-1].inputs[1])


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), ["c"], **attributes)


def check(found: Constant, source: str, array: np.ndarray) -> None:
    assert found.source == source
    assert found.array is not None
    assert found.array.dtype == array.dtype
    np.testing.assert_array_equal(found.array, array)


def test_an_initializer() -> None:
    found = resolved([], {"c": VALUES})
    check(found, "initializer", VALUES)
    assert not found.overridable


def test_an_initializer_that_is_a_graph_input_too() -> None:
    found = resolved([], {"c": VALUES}, also_inputs=["c"])
    check(found, "initializer, also a graph input", VALUES)
    assert found.overridable


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": numpy_helper.from_array(VALUES)}, VALUES),
        ({"value_float": 0.5}, np.array(0.5, np.float32)),
        ({"value_floats": [0.5, 2.0]}, np.array([0.5, 2.0], np.float32)),
        ({"value_int": 3}, np.array(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_constant_node(attributes: dict[str, Any], expected: np.ndarray) -> None:
    check(resolved([node("Constant", **attributes)]), "Constant", expected)


def test_a_constant_of_shape() -> None:
    fill = numpy_helper.from_array(np.array([0.25], np.float32))
    shape = {"shape": np.array([2, 3])}
    check(
        resolved([node("ConstantOfShape", "shape", value=fill)], shape),
        "ConstantOfShape",
        np.full((2, 3), 0.25, np.float32),
    )
    check(
        resolved([node("ConstantOfShape", "shape")], shape),
        "ConstantOfShape",
        np.zeros((2, 3), np.float32),
    )


@pytest.mark.parametrize("dims", [[2**40, 2**40], [-1, 3]])
def test_a_constant_of_absurd_shape_is_not_made(dims: list[int]) -> None:
    found = resolved([node("ConstantOfShape", "shape")], {"shape": np.array(dims)})
    assert found.array is None
    assert found.source == "ConstantOfShape"


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (node("Identity", "v"), VALUES),
        (node("Cast", "v", to=TensorProto.DOUBLE), VALUES.astype(np.float64)),
        (node("Reshape", "v", "shape"), VALUES.reshape(1, 3, 1)),
        (node("Unsqueeze", "v", "axes"), VALUES[:, None]),
        (node("Flatten", "v"), VALUES[:, None]),
    ],
    ids=lambda case: case.op_type if isinstance(case, onnx.NodeProto) else "",
)
def test_steps_are_seen_through(step: onnx.NodeProto, expected: np.ndarray) -> None:
    stored = {"v": VALUES, "shape": np.array([1, -1, 1]), "axes": np.array([1])}
    check(resolved([step], stored), f"{step.op_type} of initializer", expected)


@pytest.mark.parametrize(
    ("step", "opset"),
    [
        (node("Squeeze", "v"), 15),
        (node("Squeeze", "v", "axes"), 15),
        (node("Squeeze", "v", axes=[0, 2]), 11),
        (node("Reshape", "v", shape=[3]), 1),
        (node("Reshape", "v", "flat"), 15),
    ],
)
def test_both_ways_of_saying_axes_and_shapes(step: onnx.NodeProto, opset: int) -> None:
    stored = {"v": VALUES.reshape(1, 3, 1), "axes": np.array([0, -1]), "flat": np.array([3])}
    found = resolved([step], stored, opset=opset)
    check(found, f"{step.op_type} of initializer", VALUES)


def test_a_zero_in_a_shape_keeps_the_dimension() -> None:
    stored = {"v": VALUES, "shape": np.array([0, 1])}
    check(
        resolved([node("Reshape", "v", "shape")], stored),
        "Reshape of initializer",
        VALUES[:, None],
    )


def test_unsqueeze_before_opset_13() -> None:
    found = resolved([node("Unsqueeze", "v", axes=[0, 2])], {"v": VALUES}, opset=11)
    check(found, "Unsqueeze of initializer", VALUES[None, :, None])


def test_a_chain_names_each_step_and_keeps_its_root() -> None:
    cast = helper.make_node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)
    found = resolved([cast, node("Identity", "w")], {"v": VALUES.astype(np.float16)})
    check(found, "Identity of Cast of initializer", VALUES)
    assert found.value is not None
    assert found.value.name == "v"


def test_what_is_computed_or_fed_is_not_constant() -> None:
    computed = resolved([node("Abs", "v")], {"v": VALUES})
    assert (computed.source, computed.array) == ("computed by Abs", None)
    fed = resolved([], {}, also_inputs=["c"])
    assert (fed.source, fed.array) == ("graph input", None)
    reshaped = resolved([node("Identity", "v")], {}, also_inputs=["v"])
    assert (reshaped.source, reshaped.array) == ("Identity of graph input", None)


def test_a_shape_that_is_computed_makes_the_result_unknown() -> None:
    shape = helper.make_node("Shape", ["x"], ["s"])
    found = resolved([shape, node("Reshape", "v", "s")], {"v": VALUES})
    assert found.array is None


def test_a_cycle_is_left() -> None:
    around = [helper.make_node("Identity", ["c"], ["d"]), node("Identity", "d")]
    for nodes in (around, [node("Reshape", "v", "c")]):
        last = helper.make_node("Add", ["x", "c"], ["y"])
        proto = onnx_models.plain_model([*nodes, last], {"v": VALUES})
        model = ir.from_proto(proto)  # load refuses it
        assert resolve(model.graph[-1].inputs[1]).array is None


def test_no_value_at_all() -> None:
    assert resolve(None).source == "missing"


def test_a_constant_is_read_only() -> None:
    found = resolved([], {"c": VALUES})
    assert found.array is not None
    with pytest.raises(ValueError, match="read-only"):
        found.array[0] = 1


def test_a_tensor_whose_data_does_not_fit_its_shape() -> None:
    proto = onnx_models.plain_model([helper.make_node("Add", ["x", "c"], ["y"])], {"c": VALUES})
    proto.graph.initializer[0].dims[:] = [5]
    with pytest.raises(
        ModelError, match=r"tensor 'c' of type FLOAT and shape \[5\] cannot be read"
    ):
        resolve(load(proto).graph[0].inputs[1])


def test_a_step_that_does_not_fit_its_input() -> None:
    with pytest.raises(ModelError, match=r"Reshape 'c' does not fit .* shape \[3\]"):
        resolved([node("Reshape", "v", "shape")], {"v": VALUES, "shape": np.array([2, 2])})
