"""What a model takes, and random inputs that fit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_models
import pytest
from onnx import TensorProto, helper

from cbn.export import inputs
from cbn.export.files import ModelError
from cbn.export.inputs import DataError, model_inputs, not_finite, random_inputs


def model_taking(*inputs):
    """A model whose inputs are x and these, none of which it uses but x."""
    return onnx_models.make_model([onnx_models.batch_norm_node()], inputs=inputs)


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def test_inputs_are_those_without_an_initializer():
    model = onnx_models.single()
    model.graph.input.append(value("s", TensorProto.FLOAT, [3]))  # as IR version 3 lists them
    (declared,) = model_inputs(model)
    assert declared.name == "x"
    assert declared.dtype == np.float32
    assert declared.shape == ("N", 3, "L")
    assert str(declared) == "float32 of shape (N, 3, L)"


@pytest.mark.parametrize("dim", [-1, 0])
def test_sizes_that_are_none_are_open(dim):
    (declared,) = model_inputs(onnx_models.single(shape=(dim, 3, dim)))
    assert declared.shape == (None, 3, None)


def test_an_input_that_is_no_tensor_is_an_error():
    sequence = helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None)
    with pytest.raises(ModelError, match=r"input 'list' has the type .*expected a tensor"):
        model_inputs(model_taking(sequence))


def test_random_shapes_are_the_declared_ones_and_open_sizes_the_documented_ones():
    model = onnx_models.single(shape=("N", 3, None, 5))
    assert random_inputs(model)["x"].shape == (4, 3, 32, 5)
    assert random_inputs(model, batch=2, size=7)["x"].shape == (2, 3, 7, 5)


def test_random_inputs_depend_on_the_seed_alone():
    model = onnx_models.single()
    first, second, other = (random_inputs(model, seed)["x"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize(
    "kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "UINT8", "BOOL"]
)
def test_random_types(kind):
    number = TensorProto.DataType.Value(kind)
    array = random_inputs(model_taking(value("z", number, ["N", 50])))["z"]
    assert ir.DataType(number).numpy() == array.dtype
    assert array.shape == (4, 50)
    if "FLOAT" in kind or kind == "DOUBLE":
        assert 0.7 < array.astype(np.float64).std() < 1.3
    else:
        assert set(np.unique(array).tolist()) == {0, 1}


def test_a_scalar_input_gets_a_scalar():
    assert random_inputs(model_taking(onnx_models.flag("c")))["c"].shape == ()


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (value("z", TensorProto.FLOAT, None), "input 'z' declares no shape: give data"),
        (value("z", TensorProto.STRING, ["N"]), "input 'z' is object.*so give data"),
        (value("z", TensorProto.FLOAT, [10**6, 10**6]), "input 'z'.*too large"),
    ],
)
def test_what_cannot_be_made_up_is_an_error(extra, match):
    with pytest.raises(ModelError, match=match):
        random_inputs(model_taking(extra))


def test_dimensions_of_one_name_have_one_size():
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, "N"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "N"])
    node = helper.make_node("MatMul", ["x", "z"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", inputs, [y]))
    feeds = random_inputs(model)
    assert feeds["x"].shape == (4, 3)
    assert feeds["z"].shape == (3, 4)


@pytest.mark.parametrize("at_once", [1, 7, 2**22])
def test_values_that_are_not_finite_are_counted_by_input(monkeypatch, at_once):
    monkeypatch.setattr(inputs, "_COUNTED_AT_ONCE", at_once)
    x = np.zeros((5, 3, 2), np.float32)
    x[0, 0, 0], x[4, 2, 1], x[2, 1, 0] = np.nan, np.inf, -np.inf
    feeds = {
        "x": x,
        "small": np.array([1, np.nan], ml_dtypes.bfloat16),
        "one": np.array(np.nan),
        "whole": np.arange(3),
        "none": np.zeros((0, 3), np.float32),
        "sound": np.ones(4),
    }
    assert not_finite(feeds) == (
        "3 of 30 values of the input 'x' are not finite (NaN or infinity)",
        "1 of 2 values of the input 'small' is not finite (NaN or infinity)",
        "1 of 1 value of the input 'one' is not finite (NaN or infinity)",
    )


def test_inputs_without_a_finite_number_are_refused():
    feeds = {"x": np.full((5, 3), np.nan, np.float32), "y": np.array(np.inf)}
    with pytest.raises(DataError, match=r"15 of 15 values of the input 'x' .*; 1 of 1 value"):
        not_finite(feeds)
    assert len(not_finite({**feeds, "index": np.arange(3)})) == 2
