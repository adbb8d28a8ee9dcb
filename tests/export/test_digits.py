"""The example network in examples/digits: the committed files are whole and agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
EVAL, TRAINING = FOLDER / "digits.onnx", FOLDER / "digits_training.onnx"
BOTH = pytest.mark.parametrize("path", [EVAL, TRAINING], ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "digits.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def train() -> ModuleType:
    pytest.importorskip("torch", reason="the training script needs PyTorch")
    pytest.importorskip("sklearn", reason="the training script needs scikit-learn")
    spec = importlib.util.spec_from_file_location("digits_train", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batch_norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def test_data_is_the_labelled_test_set(data):
    assert set(data) == {"image", "label"}
    assert data["image"].dtype == np.float32
    assert data["image"].shape == (450, 1, 8, 8)
    assert data["image"].min() == 0
    assert data["image"].max() == 1
    assert data["label"].dtype == np.int64
    assert np.bincount(data["label"]).tolist() == [45, 46, 44, 46, 45, 46, 45, 45, 43, 45]


def test_accuracy_on_the_test_set(data):
    assert (logits(EVAL, data["image"]).argmax(axis=1) == data["label"]).mean() >= 0.98


def test_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 500_000


@BOTH
def test_model_is_valid_and_takes_any_batch_size(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (image,), (output,) = model.graph.input, model.graph.output
    assert (image.name, output.name) == ("image", "logits")
    assert image.type.tensor_type.shape.dim[0].dim_param
    assert output.type.tensor_type.shape.dim[0].dim_param


@BOTH
def test_statistics_are_those_of_a_trained_network(path):
    model = onnx.load(path)
    arrays = weights(model)
    nodes = batch_norms(model)
    assert len(nodes) >= 5
    for node in nodes:
        for name in node.input[1:]:
            assert np.isfinite(arrays[name]).all()
            assert np.ptp(arrays[name]) > 0
        assert (arrays[node.input[4]] > 0).all()


@pytest.mark.parametrize(("path", "mode", "outputs"), [(EVAL, 0, 1), (TRAINING, 1, 3)])
def test_mode_of_the_nodes(path, mode, outputs):
    for node in batch_norms(onnx.load(path)):
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        assert attributes["training_mode"] == mode
        assert len(node.output) == outputs


@BOTH
def test_weights_are_those_of_the_state_dict(path):
    state = load_file(FOLDER / "digits.safetensors")
    for name, array in weights(onnx.load(path)).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@BOTH
def test_model_holds_no_trace_of_the_machine_that_made_it(path):
    model = onnx.load(path)
    assert not model.doc_string
    assert not model.metadata_props
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props


def test_files_are_those_of_the_training_script(train, data):
    import torch
    from safetensors.torch import load_file

    net = train.Net()
    net.load_state_dict(load_file(FOLDER / "digits.safetensors"))
    images, labels = train.load_data()[2:]
    np.testing.assert_array_equal(images, data["image"])
    np.testing.assert_array_equal(labels, data["label"])
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(images)).numpy()
    actual = logits(EVAL, images)
    # float32 sums over up to 288 terms, in another order: errors add as ULP of the largest logit.
    assert np.abs(actual - expected).max() <= 16 * np.spacing(np.abs(expected).max())
