"""``cbn lint``, ``freeze``, ``lower`` and ``fold``: what they print, write and refuse to write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx_models import batch_norm_node, make_model, parameters, single

from cbn import export
from cbn.export.rewrite import Changes, RewriteRow, run_rewrite

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
COMMANDS = ("freeze", "lower", "fold")


def save(model, folder, name="model.onnx"):
    path = folder / name
    onnx.save(model, path)
    return path


@pytest.fixture
def training(tmp_path):
    return save(single(training=True), tmp_path)


@pytest.fixture
def conv(tmp_path):
    """A model with a convolution for its batch norm to fold into."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], name="conv"), batch_norm_node("h")]
    weight = np.random.default_rng(0).normal(size=(3, 3, 2)).astype("float32")
    return save(make_model(nodes, arrays={**parameters(), "w": weight}), tmp_path)


def test_from_training_mode_to_a_folded_network(command, tmp_path):
    data = DIGITS / "digits.npz"
    frozen, folded, lowered = (
        tmp_path / f"{name}.onnx" for name in ("frozen", "folded", "lowered")
    )
    source = DIGITS / "digits_training.onnx"
    shown = command("freeze", source, "-o", frozen, "--data", data)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "logits differs by up to" in shown.stdout
    shown = command("fold", frozen, "-o", folded, "--data", data)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert export.find_nodes(folded) == []
    shown = command("lower", source, "-o", lowered, "--data", data)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert export.find_nodes(lowered) == []
    assert f"passed: 5 of 5 nodes changed; proved on {data}, measured" in shown.stdout
    assert shown.stdout.splitlines()[-1] == f"{lowered}: written"


def test_a_row_for_each_node_then_one_for_each_output(invoke, conv, tmp_path):
    shown = invoke("fold", conv, "-o", tmp_path / "out.onnx")
    assert shown.exit_code == 0
    first, second, verdict = shown.stdout.split("\n\n")
    assert first.splitlines()[0].split()[:2] == ["node", "action"]
    assert first.splitlines()[2].startswith("bn_y  folded into Conv 'conv'")
    assert second.splitlines()[0].split()[:3] == ["value", "kind", "largest"]
    assert second.splitlines()[2].split()[:2] == ["y", "output"]
    assert verdict.startswith("passed: 1 of 1 node changed; proved on random inputs (seed 0)")


@pytest.mark.parametrize("verb", COMMANDS)
def test_json_is_the_result_and_nothing_else(command, training, tmp_path, verb):
    out = tmp_path / "out.onnx"
    shown = command(verb, training, "-o", out, "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    found = json.loads(shown.stdout)
    assert found["ok"] is True
    assert found["output"] == str(out)
    assert found["rows"][0]["name"] == "bn_y"


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_input_is_never_touched(invoke, training, tmp_path, verb):
    before = training.read_bytes()
    shown = invoke(verb, training, "-o", training)
    assert shown.exit_code == 2
    assert "the output would overwrite an input" in shown.stderr
    link = tmp_path / "link.onnx"
    link.symlink_to(training)
    assert invoke(verb, training, "-o", link).exit_code == 2
    assert invoke(verb, training, "-o", tmp_path / "out.onnx").exit_code == 0
    assert training.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.onnx", "model.onnx", "out.onnx"]


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("output", ["ext.data", "ext"])
def test_the_external_data_is_no_output_either(invoke, tmp_path, monkeypatch, verb, output):
    path = tmp_path / "ext.onnx"
    onnx.save(
        single(training=True),
        path,
        save_as_external_data=True,
        location="ext.data",
        size_threshold=0,
    )
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(export, verb, lambda *_, **__: pytest.fail("it was refused too late"))
    shown = invoke(verb, path, "-o", tmp_path / output)
    assert shown.exit_code == 2
    assert "the output would overwrite an input" in shown.stderr
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert set(before) == {"ext.onnx", "ext.data"}


def test_the_data_is_no_output_either(invoke, training, tmp_path):
    data = tmp_path / "x.npy"
    np.save(data, np.ones((2, 3, 4), "float32"))
    assert invoke("lower", training, "-o", data, "--data", data).exit_code == 2
    assert np.load(data).shape == (2, 3, 4)


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_output_that_cannot_be_written(invoke, training, tmp_path, verb):
    shown = invoke(verb, training, "-o", tmp_path / "none" / "out.onnx")
    assert shown.exit_code == 2
    assert "there is no folder" in shown.stderr
    assert invoke(verb, training, "-o", tmp_path).exit_code == 2
    assert "--output" in invoke(verb, training).stderr


@pytest.fixture
def broken_fold(monkeypatch):
    """``export.fold`` as it must never be: off by one part in a thousand."""

    def fold(model, *, data, seed, providers, num_threads, **_):
        def rewrite(copy):
            value = copy.graph.initializers["s"]
            tensor = (value.const_value.numpy() * 1.001).astype("float32")
            value.const_value = ir.tensor(tensor)
            return Changes([RewriteRow("bn_y", "folded", value="y")])

        return run_rewrite(model, rewrite, data=data, seed=seed, providers=providers)

    monkeypatch.setattr(export, "fold", fold)


def test_a_model_whose_proof_fails_is_not_written(invoke, broken_fold, tmp_path):
    path, out = save(single(), tmp_path), tmp_path / "out.onnx"
    shown = invoke("fold", path, "-o", out)
    assert shown.exit_code == 1
    assert "FAILED" in shown.stdout
    assert "it computes something else" in shown.stdout
    assert shown.stdout.splitlines()[-1].endswith("(--force writes it)")
    assert not out.exists()
    assert json.loads(invoke("fold", path, "-o", out, "--json").stdout)["output"] is None


def test_force_writes_it_all_the_same_and_still_says_so(invoke, broken_fold, tmp_path):
    out = tmp_path / "out.onnx"
    shown = invoke("fold", save(single(), tmp_path), "-o", out, "--force")
    assert shown.exit_code == 1
    assert "written all the same (--force)" in shown.stdout
    assert export.find_nodes(out)


def test_a_node_that_cannot_be_changed_is_exit_code_1(invoke, tmp_path):
    arrays = {**parameters(), "m": np.zeros(3, "float32"), "v": np.ones(3, "float32")}
    path = save(single(training=True, arrays=arrays), tmp_path)
    shown = invoke("freeze", path, "-o", tmp_path / "out.onnx")
    assert shown.exit_code == 1
    assert "1 node could not be changed" in shown.stdout
    assert "not written, since a node could not be changed" in shown.stdout
    assert not (tmp_path / "out.onnx").exists()
    shown = invoke("freeze", path, "-o", tmp_path / "out.onnx", "--policy", "batch")
    assert shown.exit_code == 0


def test_where_nothing_changed_it_says_so(invoke, training, tmp_path):
    shown = invoke("fold", training, "-o", tmp_path / "out.onnx")
    assert shown.exit_code == 0
    assert "nothing changed: 0 of 1 node" in shown.stdout
    assert "passed" not in shown.stdout


def test_recalibration_takes_the_statistics_of_the_data(invoke, tmp_path):
    arrays = {**parameters(), "m": np.zeros(3, "float32"), "v": np.ones(3, "float32")}
    path, out = save(single(training=True, arrays=arrays), tmp_path), tmp_path / "out.onnx"
    shown = invoke("freeze", path, "-o", out, "--policy", "recalibrated")
    assert shown.exit_code == 2
    assert "policy 'recalibrated' needs data" in shown.stderr
    x = np.random.default_rng(0).normal(2, 3, (64, 3, 5)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    arguments = ("freeze", path, "-o", out, "--policy", "recalibrated")
    shown = invoke(*arguments, "--data", tmp_path / "x.npy")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "frozen with recalibrated statistics" in shown.stdout
    (norm,) = export.find_nodes(out)
    np.testing.assert_allclose(norm.var.array, x.var(axis=(0, 2), dtype=float), rtol=1e-6)


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_model_without_batch_norms_is_exit_code_2(invoke, tmp_path, verb):
    path = save(make_model([helper.make_node("Relu", ["x"], ["y"])]), tmp_path)
    shown = invoke(verb, path, "-o", tmp_path / "out.onnx")
    assert shown.exit_code == 2
    (line,) = shown.stderr.splitlines()
    assert line.endswith("the model has no BatchNormalization node: nothing to do")
    assert not (tmp_path / "out.onnx").exists()


def test_options_reach_the_rewrite(invoke, tmp_path):
    nodes = [batch_norm_node(y="h"), batch_norm_node("h")]
    path = save(make_model(nodes), tmp_path)
    shown = invoke("lower", path, "-o", tmp_path / "out.onnx", "--affine", "--node", "bn_h")
    assert shown.exit_code == 0
    assert [norm.name for norm in export.find_nodes(tmp_path / "out.onnx")] == ["bn_y"]
    shown = invoke("lower", path, "-o", tmp_path / "out.onnx", "--node", "other")
    assert shown.exit_code == 2
    assert "'other'" in shown.stderr


def test_lint_says_what_it_means_and_what_to_do(command, training):
    shown = command("lint", training)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[2].split()[:3] == ["bn_y", "warning", "training-mode"]
    assert "training-mode: normalizes with the batch's statistics" in shown.stdout
    assert "  What to do: cbn freeze" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "passed: 2 warnings"


def test_lint_exit_codes(invoke, training, tmp_path):
    assert invoke("lint", training).exit_code == 0
    assert invoke("lint", training, "--strict").exit_code == 1
    sound = save(single(), tmp_path, "sound.onnx")
    assert invoke("lint", sound, "--strict").exit_code == 0
    assert invoke("lint", sound).stdout == "passed: nothing to remark\n"
    bad = make_model([batch_norm_node()], arrays={**parameters(), "v": -np.ones(3, "float32")})
    assert invoke("lint", save(bad, tmp_path, "bad.onnx")).exit_code == 1


def test_lint_json_is_the_report_and_nothing_else(command, training):
    shown = command("lint", training, "--json")
    assert json.loads(shown.stdout) == export.lint(training).to_dict()
