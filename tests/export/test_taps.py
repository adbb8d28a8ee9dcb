"""Values from inside a model, taken out through a copy of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_models
import pytest
from onnx import helper

from cbn.export.files import ModelError
from cbn.export.sessions import make_session, run_session
from cbn.export.taps import expose

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2)


@pytest.fixture
def model() -> ir.Model:
    """x -> Abs -> BatchNormalization -> Neg -> y, with no shape or type stated inside."""
    nodes = [
        helper.make_node("Abs", ["x"], ["inside"]),
        onnx_models.batch_norm_node("inside", "normal"),
        helper.make_node("Neg", ["normal"], ["y"]),
    ]
    return ir.from_proto(onnx_models.make_model(nodes))


def run(model: ir.Model) -> dict[str, np.ndarray]:
    return run_session(make_session(model, optimize=False), {"x": X})


def test_an_inner_value_comes_out(model):
    tapped, outputs = expose(model, ["inside", "normal"])
    values = run(tapped)
    np.testing.assert_array_equal(values[outputs["inside"]], np.abs(X))
    np.testing.assert_array_equal(values[outputs["normal"]], -values["y"])


def test_the_given_model_is_not_changed(model):
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    expose(model, ["inside", "x"])
    expose(model, ["inside"], shapes_only=True)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_models_own_outputs_stay_first_and_single(model):
    tapped, outputs = expose(model, ["y", "inside", "inside"])
    assert [value.name for value in tapped.graph.outputs] == ["y", "inside"]
    assert outputs == {"y": "y", "inside": "inside"}


@pytest.mark.parametrize("name", ["x", "s"])
def test_an_input_or_initializer_comes_out(model, name):
    tapped, outputs = expose(model, [name])
    expected = X if name == "x" else onnx_models.parameters()["s"]
    np.testing.assert_array_equal(run(tapped)[outputs[name]], expected)


def test_shapes_alone(model):
    tapped, outputs = expose(model, ["inside", "x"], shapes_only=True)
    values = run(tapped)
    assert [values[outputs[name]].tolist() for name in ("inside", "x")] == [[2, 3, 2], [2, 3, 2]]


def test_new_names_do_not_meet_old_ones():
    nodes = [
        helper.make_node("Abs", ["x"], ["x_identity"]),
        helper.make_node("Neg", ["x_identity"], ["y"]),
    ]
    tapped, outputs = expose(ir.from_proto(onnx_models.make_model(nodes)), ["x", "x_identity"])
    values = run(tapped)
    np.testing.assert_array_equal(values[outputs["x"]], X)
    np.testing.assert_array_equal(values[outputs["x_identity"]], np.abs(X))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_values_keep_their_type(dtype):
    nodes = [
        helper.make_node("Abs", ["x"], ["inside"]),
        helper.make_node("Neg", ["inside"], ["y"]),
    ]
    model = ir.from_proto(onnx_models.make_model(nodes, dtype=dtype))
    tapped, outputs = expose(model, ["inside"])
    value = run_session(make_session(tapped), {"x": X.astype(dtype)})[outputs["inside"]]
    assert value.dtype == dtype


def test_an_unknown_name_is_an_error(model):
    with pytest.raises(ModelError, match="no value 'nowhere'"):
        expose(model, ["nowhere"])
