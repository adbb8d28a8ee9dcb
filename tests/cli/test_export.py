"""``cbn export``: weights in, an ONNX file out."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file

import cbn


def trained(kind=cbn.BatchNorm2d, features=4, dtype="float32", **options):
    """Return a layer with parameters and statistics of its own."""
    rng = np.random.default_rng(7)
    layer = kind(features, dtype=dtype, **options)
    state = {
        name: rng.uniform(0.5, 2, features).astype(dtype)
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    layer.load_state_dict({**state, "num_batches_tracked": np.array(3)})
    return layer


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "bn.npz"
    np.savez(path, **trained().state_dict())
    return path


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


@pytest.mark.parametrize("form", ["batchnorm", "affine", "primitives"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("rank", "kind"),
    [(2, cbn.BatchNorm1d), (3, cbn.BatchNorm1d), (4, cbn.BatchNorm2d), (5, cbn.BatchNorm3d)],
)
def test_the_model_computes_the_layer(invoke, tmp_path, rank, kind, dtype, form):
    layer = trained(kind, dtype=dtype, eps=2**-10)
    np.savez(tmp_path / "bn.npz", **layer.state_dict())
    out = tmp_path / "bn.onnx"
    shown = invoke(
        "export", tmp_path / "bn.npz", "-o", out, "--rank", rank, "--form", form, "--eps", 2**-10
    )
    assert shown.exit_code == 0, shown.stderr
    x = np.random.default_rng(1).normal(size=(3, 4, 5, 6, 7)[:rank]).astype(dtype)
    expected = layer.eval()(x)
    np.testing.assert_allclose(run(out, x)["y"], expected, rtol=0, atol=8 * np.finfo(dtype).eps * 4)


def test_training_mode_moves_the_running_statistics_as_the_layer_does(invoke, weights, tmp_path):
    out = tmp_path / "bn.onnx"
    shown = invoke("export", weights, "-o", out, "--training", "--momentum", "0.25")
    assert shown.exit_code == 0, shown.stderr
    layer = trained(momentum=0.25)
    x = np.random.default_rng(1).normal(size=(8, 4, 5, 6)).astype("float32")
    expected = layer(x)
    results = run(out, x)
    np.testing.assert_allclose(results["y"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(results["running_mean"], layer.running_mean, rtol=1e-6)
    np.testing.assert_allclose(results["running_var"], layer.running_var, rtol=1e-6)


def test_says_what_it_wrote(invoke, weights, tmp_path):
    out = tmp_path / "bn.onnx"
    shown = invoke("export", weights, "-o", out, "--opset", 15)
    assert shown.stdout == f"{out}: batchnorm, opset 15, eval, 4 channels, rank 4, float32\n"
    assert onnx.load(out).opset_import[0].version == 15


def test_json_says_what_it_wrote(invoke, weights, tmp_path):
    out = tmp_path / "bn.onnx"
    shown = invoke("export", weights, "-o", out, "--opset", 15, "--training", "--json")
    assert json.loads(shown.stdout) == {
        "path": str(out),
        "opset": 15,
        "form": "batchnorm",
        "mode": "training",
        "num_features": 4,
        "rank": 4,
        "dtype": "float32",
    }


def test_takes_one_layer_of_a_network(invoke, tmp_path):
    layer = trained()
    network = {f"layer1.0.bn1.{key}": np.asarray(a) for key, a in layer.state_dict().items()}
    network |= {
        f"stem.bn.{key}": np.asarray(a) for key, a in trained(features=9).state_dict().items()
    }
    save_file(network, tmp_path / "network.safetensors")
    out = tmp_path / "bn.onnx"
    shown = invoke(
        "export", tmp_path / "network.safetensors", "--prefix", "layer1.0.bn1", "-o", out
    )
    assert shown.exit_code == 0, shown.stderr
    x = np.random.default_rng(1).normal(size=(2, 4, 3, 3)).astype("float32")
    np.testing.assert_allclose(run(out, x)["y"], layer.eval()(x), rtol=0, atol=4e-6)


def test_a_file_without_the_count_of_batches_will_do(invoke, tmp_path):
    state = trained().state_dict()
    del state["num_batches_tracked"]
    np.savez(tmp_path / "bn.npz", **state)
    assert invoke("export", tmp_path / "bn.npz", "-o", tmp_path / "bn.onnx").exit_code == 0


def test_a_layer_without_parameters_will_do(invoke, tmp_path):
    layer = cbn.BatchNorm2d(4, affine=False)
    layer.running_var = np.arange(1, 5, dtype="float32")
    np.savez(tmp_path / "bn.npz", **layer.state_dict())
    out = tmp_path / "bn.onnx"
    shown = invoke("export", tmp_path / "bn.npz", "-o", out)
    assert shown.exit_code == 0, shown.stderr
    x = np.random.default_rng(1).normal(size=(2, 4, 3, 3)).astype("float32")
    np.testing.assert_allclose(run(out, x)["y"], layer.eval()(x), rtol=0, atol=4e-6)


def test_a_layer_without_running_statistics_is_for_training(invoke, tmp_path):
    layer = cbn.BatchNorm2d(4, track_running_stats=False)
    np.savez(tmp_path / "bn.npz", **layer.state_dict())
    out = tmp_path / "bn.onnx"
    shown = invoke("export", tmp_path / "bn.npz", "-o", out)
    assert shown.exit_code == 2
    assert "no running_mean and running_var" in shown.stderr
    assert "--training" in shown.stderr
    assert invoke("export", tmp_path / "bn.npz", "-o", out, "--training").exit_code == 0
    x = np.random.default_rng(1).normal(size=(2, 4, 3, 3)).astype("float32")
    np.testing.assert_allclose(run(out, x)["y"], layer(x), rtol=0, atol=4e-6)


def changed(**arrays):
    """Return a layer's arrays with some of them replaced, or dropped where None."""
    state = {**trained().state_dict(), **arrays}
    return {key: array for key, array in state.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        (changed(running_var=np.array([1, -1, 1, 1], "float32")), "running_var"),
        (changed(running_var=np.array([1, np.nan, 1, 1], "float32")), "running_var"),
        (changed(running_mean=np.ones(5, "float32")), "running_mean"),
        (changed(weight=np.ones((4, 1), "float32")), "weight"),
        (changed(weight=np.ones(4, "int64")), "weight"),
        (changed(bias=np.ones(4, "complex64")), "bias"),
        (changed(bias=None), "bias"),
        (changed(running_var=None), "running_var"),
        ({"conv.weight": np.ones((4, 1, 3, 3), "float32")}, "conv.weight"),
        ({"bn.num_batches_tracked": np.array(1)}, "num_batches_tracked"),
        ({}, "empty"),
    ],
)
def test_bad_weights_are_named_and_nothing_is_written(invoke, tmp_path, arrays, named):
    np.savez(tmp_path / "bn.npz", **arrays)
    shown = invoke("export", tmp_path / "bn.npz", "-o", tmp_path / "bn.onnx")
    assert shown.exit_code == 2, shown.stdout
    assert shown.stderr.startswith("cbn: error: ")
    assert shown.stderr.count("\n") == 1
    assert named in shown.stderr
    assert os.listdir(tmp_path) == ["bn.npz"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--opset", 6), "opset"),
        (("--opset", 999), "opset"),
        (("--eps", -1), "eps"),
        (("--eps", "nan"), "eps"),
        (("--form", "affine", "--training"), "affine"),
        (("--prefix", "layer9"), "layer9"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(invoke, weights, options, named):
    shown = invoke("export", weights, "-o", weights.with_name("bn.onnx"), *options)
    assert shown.exit_code == 2, shown.stdout
    assert shown.stderr.startswith("cbn: error: ")
    assert named in shown.stderr
    assert os.listdir(weights.parent) == ["bn.npz"]


def test_a_folder_that_does_not_exist_is_named(command, weights, tmp_path):
    shown = command("export", weights, "-o", tmp_path / "nowhere" / "bn.onnx")
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr.startswith("cbn: error: ")
    assert "nowhere" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_the_weights_are_never_overwritten(invoke, weights):
    before = weights.read_bytes()
    shown = invoke("export", weights, "-o", weights)
    assert shown.exit_code == 2
    assert "the output would overwrite an input" in shown.stderr
    assert weights.read_bytes() == before


def test_a_failure_leaves_an_older_file_as_it_was(invoke, weights):
    out = weights.with_name("bn.onnx")
    out.write_bytes(b"an older file")
    assert invoke("export", weights, "-o", out, "--opset", 6).exit_code == 2
    assert out.read_bytes() == b"an older file"
