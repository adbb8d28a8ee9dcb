"""Inputs are bound once and stay where they are; results come when they are asked for."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest

from cbn.export.bound import BoundSession
from cbn.export.files import ModelError
from cbn.export.sessions import RunError, make_session, run_session

X = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


def expected(x: np.ndarray) -> np.ndarray:
    return run_session(make_session(onnx_models.single()), {"x": x})["y"]


@pytest.fixture
def bound() -> BoundSession:
    return BoundSession(onnx_models.single(), {"x": X})


@pytest.mark.parametrize("wait", [True, False])
def test_results_are_those_of_an_ordinary_run(bound, wait):
    bound.run(wait=wait)
    np.testing.assert_array_equal(bound.results()["y"], expected(X))
    assert (bound.device, bound.provider) == ("cpu", "CPUExecutionProvider")


def test_memory_is_the_same_in_every_run(bound):
    places = set()
    for _ in range(3):
        bound.run()
        places.add((bound.inputs["x"].data_ptr(), bound.outputs["y"].data_ptr()))
    assert len(places) == 1


def test_results_are_copies(bound):
    bound.run()
    first = bound.results()["y"]
    kept = first.copy()
    bound.update({"x": X + 1})
    bound.run()
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(bound.results()["y"], expected(X + 1))


def test_an_update_leaves_the_array_that_was_given_alone():
    given = X.copy()
    bound = BoundSession(onnx_models.single(), {"x": given})
    bound.update({"x": X + 1})
    np.testing.assert_array_equal(given, X)
    given[:] = 0
    bound.run()
    np.testing.assert_array_equal(bound.results()["y"], expected(X + 1))


def test_values_of_any_stride_go_in(bound):
    turned = np.asfortranarray(X[::-1])
    bound.update({"x": turned})
    bound.run()
    np.testing.assert_array_equal(bound.results()["y"], expected(X[::-1]))


def test_an_ortvalue_is_used_where_it_lies():
    value = onnxruntime.OrtValue.ortvalue_from_numpy(X.copy())
    bound = BoundSession(onnx_models.single(), {"x": value})
    assert bound.inputs["x"] is value
    value.update_inplace(X + 2)
    bound.run()
    np.testing.assert_array_equal(bound.results()["y"], expected(X + 2))


def test_bfloat16_goes_in():
    node = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    model = onnx_models.make_model([node], output_types={"y": onnx.TensorProto.FLOAT})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    given = (X / 3).astype(ml_dtypes.bfloat16)
    bound = BoundSession(model, {"x": given})
    bound.run()
    np.testing.assert_array_equal(bound.results()["y"], given.astype(np.float32))


def test_there_are_no_results_before_a_run(bound):
    assert dict(bound.outputs) == {}
    with pytest.raises(ModelError, match="nothing was run yet"):
        bound.results()


@pytest.mark.parametrize("feeds", [{}, {"z": X}, {"x": X, "z": X}])
def test_inputs_are_those_of_the_model(feeds):
    with pytest.raises(ValueError, match=r"expected the inputs \['x'\], got"):
        BoundSession(onnx_models.single(), feeds)


@pytest.mark.parametrize(("value", "match"), [([1.0], "got list"), (np.array(["a"]), "numbers")])
def test_what_is_no_array_of_numbers_is_refused(value, match):
    with pytest.raises(TypeError, match=f"input 'x' .*{match}"):
        BoundSession(onnx_models.single(), {"x": value})


@pytest.mark.parametrize(
    ("feeds", "match"),
    [
        ({"z": X}, r"inputs among \['x'\], got 'z'"),
        ({"x": X[:1]}, r"'x' to stay tensor\(float\) \(2, 3, 2\), got tensor\(float\) \(1, 3, 2\)"),
        ({"x": X.astype(float)}, r"got tensor\(double\)"),
    ],
)
def test_an_update_keeps_names_shapes_and_types(bound, feeds, match):
    with pytest.raises(ValueError, match=match):
        bound.update({"x": X + 1, **feeds} if "z" in feeds else feeds)
    bound.run()
    np.testing.assert_array_equal(bound.results()["y"], expected(X))


def test_a_run_that_fails_names_the_shapes():
    bound = BoundSession(onnx_models.single(), {"x": X[:, :2]})
    with pytest.raises(RunError, match=r"cannot run the model on inputs 'x' \(2, 2, 2\)"):
        bound.run()


@pytest.mark.parametrize("wait", [True, False])
def test_onnxruntime_is_told_whether_to_wait(bound, wait):
    told = []

    class Spy:
        def run_with_iobinding(self, binding, options):
            told.append(options.get_run_config_entry(KEY))

    KEY = "disable_synchronize_execution_providers"
    bound.session = Spy()
    if wait:
        with pytest.raises(RunError, match=KEY):  # the entry is not there
            bound.run(wait=True)
    else:
        bound.run(wait=False)
        assert told == ["1"]
