"""Sessions run where they were asked to."""

from __future__ import annotations

from concurrent import futures

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import onnxruntime
import pytest

from cbn.export import sessions
from cbn.export.files import ModelError
from cbn.export.sessions import ProviderError, make_session, provider_in_use, run_session

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
X = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


class FakeSession:
    """What onnxruntime does when CUDA does not start: it uses the CPU and says nothing."""

    given: list[object]

    def __init__(self, content, options, providers, **kwargs):
        FakeSession.given = providers

    def get_providers(self):
        return [CPU]


@pytest.fixture
def claims_cuda(monkeypatch):
    """An onnxruntime that lists CUDA and cannot start it."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)


@pytest.mark.parametrize("providers", ["cpu", [CPU], [(CPU, {"use_arena": "0"})]])
def test_the_cpu_in_every_spelling(providers):
    session = make_session(onnx_models.single(), providers)
    assert session.get_providers() == [CPU]
    assert run_session(session, {"x": X})["y"].shape == X.shape


def test_auto_is_the_cpu_where_cuda_is_not_available(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert make_session(onnx_models.single(), "auto").get_providers() == [CPU]


def test_auto_prefers_cuda_and_accepts_the_cpu(claims_cuda):
    session = make_session(onnx_models.single(), "auto")
    assert FakeSession.given == [(CUDA, {"use_tf32": "0"}), CPU]
    assert session.get_providers() == [CPU]


def test_cuda_that_is_not_available_is_an_error(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(ProviderError, match=rf"asked for {CUDA}.*which has {CPU}.*cbn\[gpu\]"):
        make_session(onnx_models.single(), "cuda")


@pytest.mark.parametrize("providers", ["cuda", [CUDA, CPU], [(CUDA, {"device_id": "0"})]])
def test_falling_back_in_silence_is_an_error(claims_cuda, providers):
    with pytest.raises(ProviderError, match=rf"could not start {CUDA} and would use {CPU} instead"):
        make_session(onnx_models.single(), providers)


def test_unknown_provider_is_an_error():
    with pytest.raises(ProviderError, match="NoSuchProvider is not in this onnxruntime"):
        make_session(onnx_models.single(), ["NoSuchProvider"])


def test_a_provider_that_is_not_there_is_bad_input():
    assert issubclass(ProviderError, ValueError)


@pytest.mark.parametrize(
    ("providers", "error", "match"),
    [
        ("gpu", ValueError, '"cpu", "cuda", "auto" or a list.*\'gpu\''),
        ([], ValueError, "empty list"),
        ([3], TypeError, "a name or a pair"),
    ],
)
def test_bad_providers(providers, error, match):
    with pytest.raises(error, match=match):
        make_session(onnx_models.single(), providers)


@pytest.mark.parametrize(
    ("threads", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_thread_counts(threads, error):
    with pytest.raises(error, match="num_threads"):
        make_session(onnx_models.single(), num_threads=threads)


def test_options_reach_onnxruntime():
    plain = make_session(onnx_models.single(), optimize=False, num_threads=2)
    options = plain.get_session_options()
    level = onnxruntime.GraphOptimizationLevel
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level == level.ORT_DISABLE_ALL
    optimized = make_session(onnx_models.single()).get_session_options()
    assert optimized.graph_optimization_level == level.ORT_ENABLE_ALL


def test_a_model_that_onnxruntime_refuses_is_one_clear_line(capfd):
    model = onnx_models.single(opset=6)
    with pytest.raises(ModelError, match="onnxruntime cannot load the model: Could not find") as e:
        make_session(model)
    assert "\n" not in str(e.value)
    assert "ONNXRuntimeError" not in str(e.value)
    assert capfd.readouterr() == ("", "")


def test_inputs_that_fail_in_the_run_are_named(capfd):
    session = make_session(onnx_models.single())
    wrong = np.zeros((2, 4, 2), np.float32)
    with pytest.raises(ModelError, match=r"cannot run the model on inputs 'x' \(2, 4, 2\)") as e:
        run_session(session, {"x": wrong})
    assert "\n" not in str(e.value)
    assert capfd.readouterr() == ("", "")


def save_external(folder, location="weights.bin"):
    path = folder / "model.onnx"
    onnx.save_model(
        onnx_models.single(), path, save_as_external_data=True, location=location, size_threshold=0
    )
    return path


@pytest.mark.parametrize("as_model", [False, True])
def test_external_data_is_found(tmp_path, as_model):
    path = save_external(tmp_path)
    expected = run_session(make_session(onnx_models.single()), {"x": X})["y"]
    session = make_session(ir.load(path) if as_model else path)
    np.testing.assert_array_equal(run_session(session, {"x": X})["y"], expected)


def test_a_model_too_large_for_one_message_goes_through_a_file(tmp_path, monkeypatch):
    expected = run_session(make_session(onnx_models.single()), {"x": X})["y"]
    monkeypatch.setattr(sessions, "LARGEST_INLINE", 10)
    monkeypatch.setattr(sessions.tempfile, "tempdir", str(tmp_path))
    given = []
    real = onnxruntime.InferenceSession

    def spy(content, *args, **kwargs):
        given.append(content)
        return real(content, *args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    session = make_session(onnx_models.single())
    assert given[0].startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(run_session(session, {"x": X})["y"], expected)


def test_a_provider_that_is_given_no_node_is_refused():
    other = "AzureExecutionProvider"
    if other not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {other}, the one that takes no ordinary node")
    with pytest.raises(ProviderError, match=f"gave no node to {other}, and all of them to {CPU}"):
        make_session(onnx_models.single(), [other])


def test_the_provider_in_use_is_that_of_the_nodes():
    session = make_session(onnx_models.single(), optimize=False)
    assert provider_in_use(session, "BatchNormalization") == CPU


@pytest.mark.parametrize("outputs", [["y", "", "rv"], ["y", "rm", ""], ["y", "rm"]])
def test_a_training_node_that_would_crash_onnxruntime_is_refused(outputs):
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in [("x", [2, 3, 4]), *((name, [3]) for name in ("s", "b", "m", "v"))]
    ]
    node = onnx.helper.make_node(
        "BatchNormalization", ["x", "s", "b", "m", "v"], outputs, name="bn", training_mode=1
    )
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3, 4])
    graph = onnx.helper.make_graph([node], "g", inputs, [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
    with pytest.raises(ModelError, match="node 'bn' is in training mode and leaves out one of its"):
        make_session(model)


def test_bfloat16_goes_in():
    value = onnx.helper.make_tensor_value_info
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        [cast],
        "g",
        [value("x", onnx.TensorProto.BFLOAT16, [2, 3, 2])],
        [value("y", onnx.TensorProto.FLOAT, [2, 3, 2])],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8
    )
    given = (X / 3).astype(ml_dtypes.bfloat16)
    found = run_session(make_session(model), {"x": given})["y"]
    np.testing.assert_array_equal(found, given.astype(np.float32))


def test_a_run_outside_the_main_thread():
    session = make_session(onnx_models.single(), optimize=False)
    expected = run_session(session, {"x": X})["y"]
    with futures.ThreadPoolExecutor(1) as pool:
        found = pool.submit(run_session, session, {"x": X}).result()["y"]
    np.testing.assert_array_equal(found, expected)
