"""``cbn check``."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_models import batch_norm_node, make_model, parameters, single

from cbn import export

CPU_ONLY = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(make_model([batch_norm_node(y="h"), batch_norm_node("h")]), path)
    return path


@pytest.fixture
def wrong(tmp_path):
    """A model that does not hold: one of its two nodes has a negative variance."""
    arrays = {**parameters(), "negative": -np.ones(3, "float32")}
    nodes = [batch_norm_node(y="h"), batch_norm_node("h", inputs=("s", "b", "m", "negative"))]
    path = tmp_path / "wrong.onnx"
    onnx.save(make_model(nodes, arrays=arrays), path)
    return path


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    x = np.random.default_rng(3).normal(size=(6, 3, 5)).astype("float32")
    np.savez(path, x=x, label=np.arange(6))
    return path


def test_prints_a_row_for_each_node_and_output_and_the_verdict(command, model, data):
    shown = command("check", model, "--data", data)
    assert (shown.exit_code, shown.stderr) == (0, "")
    title, rule, *rows, verdict = shown.stdout.splitlines()
    assert title.split()[:5] == ["name", "shape", "opset", "mode", "provider"]
    assert set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == ["bn_h", "bn_y", "y"]
    assert [row.split()[1] for row in rows] == ["6x3x5"] * 3
    assert verdict == f"passed: 2 nodes and 1 output within tolerance, on {data}"


def test_data_without_a_finite_number_checks_nothing(command, model, tmp_path):
    np.savez(tmp_path / "nan.npz", x=np.full((6, 3, 5), np.nan, np.float32))
    shown = command("check", model, "--data", tmp_path / "nan.npz")
    assert (shown.exit_code, shown.stdout) == (2, "")
    said = "90 of 90 values of the input 'x' are not finite (NaN or infinity): there is nothing to"
    assert said in shown.stderr


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
def test_data_that_is_no_numpy_file_is_not_to_be_loaded_unsafely(command, model, tmp_path, name):
    (tmp_path / name).write_text("hello")
    for verb in ("check", "drift"):
        shown = command(verb, model, "--data", tmp_path / name)
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert f"{name}: cannot be read: " in shown.stderr
        assert "pickle" not in shown.stderr
    np.save(tmp_path / "data.npy", np.array([{}], object))
    shown = command("check", model, "--data", tmp_path / "data.npy")
    assert "data.npy: cannot be read: it holds an array of Python objects" in shown.stderr


def test_json_is_the_report_and_nothing_else(command, model, data):
    shown = command("check", model, "--data", data, "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert json.loads(shown.stdout) == export.crosscheck(model, data).to_dict()


def test_what_does_not_hold_is_exit_code_1(command, wrong):
    shown = command("check", wrong)
    assert (shown.exit_code, shown.stderr) == (1, "")
    assert shown.stdout.splitlines()[-1] == (
        "FAILED: 1 of 2 nodes not within tolerance, on random inputs (seed 0)"
    )


def test_what_does_not_hold_is_exit_code_1_with_json_too(invoke, wrong):
    shown = invoke("check", wrong, "--json")
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["ok"] is False


def test_says_what_it_was_run_on(invoke, model, tmp_path):
    shown = invoke("check", model, "--seed", 5)
    assert shown.stdout.splitlines()[-1].endswith("within tolerance, on random inputs (seed 5)")
    path = tmp_path / "other.npz"
    np.savez(path, image=np.ones((6, 3, 5), "float32"), label=np.arange(6))
    said = f"{path} (array 'image' is taken for the input 'x', as the only one that fits)"
    shown = invoke("check", model, "--data", path)
    assert shown.stdout.splitlines()[-1].endswith(f"within tolerance, on {said}")
    assert json.loads(invoke("check", model, "--data", path, "--json").stdout)["inputs"] == said


def test_says_how_many_values_of_the_data_are_not_finite(invoke, model, tmp_path):
    path = tmp_path / "x.npy"
    x = np.ones((6, 3, 5), "float32")
    x[0, 0, :2] = np.nan, np.inf
    np.save(path, x)
    shown = invoke("check", model, "--data", path)
    said = "2 of 90 values of the input 'x' are not finite (NaN or infinity)"
    assert said in shown.stdout.splitlines()
    assert json.loads(invoke("check", model, "--data", path, "--json").stdout)["notes"] == [said]
    assert "not finite" not in invoke("check", model).stdout


def test_passes_its_options_on(invoke, model, data, monkeypatch):
    asked = {}
    crosscheck = export.crosscheck

    def spy(*arguments, **options):
        asked.update(options, arguments=arguments)
        return crosscheck(*arguments, **options)

    monkeypatch.setattr(export, "crosscheck", spy)
    invoke("check", model, "--data", data, "--seed", 5, "--threads", 1, "--provider", "auto")
    assert asked == {
        "arguments": (model, data),
        "seed": 5,
        "num_threads": 1,
        "providers": "auto",
    }


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_runs_on_the_provider(invoke, model, provider):
    shown = invoke("check", model, "--provider", provider, "--threads", 1, "--json")
    used = {row["provider"] for row in json.loads(shown.stdout)["rows"]}
    expected = "CPU" if provider == "cpu" or CPU_ONLY else "CUDA"
    assert used == {f"{expected}ExecutionProvider"}


def bad_input(shown):
    """Assert that a command refused its input, and return the one line that it printed."""
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr.startswith("cbn: error: ")
    assert shown.stderr.count("\n") == 1
    return shown.stderr


@pytest.mark.parametrize("asked", ["check", "inspect"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("truncated.onnx", single().SerializeToString()[:-40]),
        ("text.onnx", b"Dear all,\nthis is a letter.\n"),
        ("empty.onnx", b""),
    ],
)
def test_what_is_no_model_is_named(command, tmp_path, asked, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert name in bad_input(command(asked, path))


@pytest.mark.parametrize("asked", ["check", "inspect"])
def test_a_missing_model_is_named(command, asked):
    assert "nowhere.onnx: no such file" in bad_input(command(asked, "nowhere.onnx"))


@pytest.mark.parametrize("asked", ["check", "inspect"])
def test_a_model_without_batch_norm_is_named(invoke, tmp_path, asked):
    path = tmp_path / "relu.onnx"
    onnx.save(make_model([helper.make_node("Relu", ["x"], ["y"])]), path)
    line = bad_input(invoke(asked, path))
    assert "relu.onnx" in line
    assert "no BatchNormalization" in line


@pytest.mark.parametrize("asked", ["check", "inspect"])
def test_missing_external_data_is_named(invoke, tmp_path, asked):
    path = tmp_path / "model.onnx"
    onnx.save(single(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in bad_input(invoke(asked, path))


def test_missing_data_is_named(invoke, model):
    assert "nowhere.npz" in bad_input(invoke("check", model, "--data", "nowhere.npz"))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"image": np.ones((2, 3, 5, 5), "float32")}, "'x'"),
        ({"x": np.ones((2, 4, 5), "float32")}, "(2, 4, 5)"),
        ({"x": np.ones((2, 3), "float32")}, "(2, 3)"),
        ({"x": np.ones((2, 3, 5), "float64")}, "float64"),
        ({"x": np.ones((0, 3, 5), "float32")}, "(0, 3, 5)"),
        ({}, "'x'"),
    ],
)
def test_data_that_does_not_fit_is_named(invoke, model, tmp_path, arrays, named):
    np.savez(tmp_path / "data.npz", **arrays)
    assert named in bad_input(invoke("check", model, "--data", tmp_path / "data.npz"))


@pytest.mark.skipif(not CPU_ONLY, reason="this onnxruntime has CUDA")
def test_a_provider_that_is_not_there_is_named(invoke, model):
    line = bad_input(invoke("check", model, "--provider", "cuda"))
    assert "CUDAExecutionProvider" in line
    assert "cbn[gpu]" in line
