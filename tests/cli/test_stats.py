"""``cbn stats``: statistics into a file for each domain, back into the model, and mixed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import parameters, run, single

from cbn.export.recalibration import StatisticsBank

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def night():
    arrays = {**parameters(), "m": np.full(3, 2, "float32"), "v": np.full(3, 4, "float32")}
    return single(arrays=arrays)


@pytest.fixture
def models(tmp_path):
    """A model by day, and the same one with the statistics of the night."""
    paths = tmp_path / "day.onnx", tmp_path / "night.onnx"
    for path, model in zip(paths, (single(), night()), strict=True):
        onnx.save(model, path)
    return paths


@pytest.fixture
def banks(invoke, models, tmp_path):
    paths = tmp_path / "day.safetensors", tmp_path / "night.safetensors"
    for model, path in zip(models, paths, strict=True):
        shown = invoke("stats", "export", model, "-o", path)
        assert (shown.exit_code, shown.stderr) == (0, "")
    return paths


def test_the_night_goes_onto_the_day(invoke, models, tmp_path):
    bank, out = tmp_path / "night.safetensors", tmp_path / "out.onnx"
    shown = invoke("stats", "export", models[1], "-o", bank)
    assert (shown.exit_code, shown.stderr) == (0, "")
    mark = StatisticsBank.load(bank).fingerprint.digest[:12]
    assert shown.stdout == f"{bank}: 1 node, 3 channels, domain 'night', model {mark}\n"
    shown = invoke("stats", "apply", models[0], bank, "-o", out)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[2].split()[:4] == ["bn_y", "given", "statistics", "3"]
    assert "passed: 1 of 1 node given statistics" in shown.stdout
    assert shown.stdout.splitlines()[-1] == f"{out}: written"
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_array_equal(run(onnx.load(out), x)["y"], run(night(), x)["y"])


def test_a_node_that_was_in_training_mode_is_said_to_be_in_eval_mode_now(invoke, tmp_path):
    model, bank, out = (tmp_path / name for name in ("t.onnx", "t.safetensors", "out.onnx"))
    onnx.save(single(training=True, outputs=("y",)), model)
    assert invoke("stats", "export", model, "-o", bank).exit_code == 0
    shown = invoke("stats", "apply", model, bank, "-o", out)
    assert shown.exit_code == 0
    (row,) = (line for line in shown.stdout.splitlines() if line.startswith("bn_y"))
    assert row.endswith(
        "was in training mode (normalized each batch by itself), now uses these statistics"
    )
    assert "training mode" not in invoke("stats", "apply", out, bank, "-o", model).stdout


def test_a_blend_lies_between(invoke, banks, tmp_path):
    out = tmp_path / "dusk.safetensors"
    shown = invoke("stats", "blend", *banks, "--weight", "0.25", "-o", out)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "domain '0.75 day + 0.25 night'" in shown.stdout
    found = StatisticsBank.load(out).statistics["bn_y"].var
    np.testing.assert_allclose(found, 0.75 * parameters()["v"].astype(float) + 1, rtol=1e-15)


def test_domains_are_the_users_words(invoke, banks, models, tmp_path):
    out = tmp_path / "s.safetensors"
    assert invoke("stats", "export", models[0], "-o", out, "--domain", "hall 3").exit_code == 0
    assert StatisticsBank.load(out).domain == "hall 3"
    arguments = ("stats", "blend", *banks, "--weight", "1", "-o", out, "--domain", "dusk")
    assert invoke(*arguments).exit_code == 0
    assert StatisticsBank.load(out).domain == "dusk"


@pytest.mark.parametrize("given", [(), ("--weight", "0.5", "--prior", "3")])
def test_a_blend_takes_a_weight_or_a_prior(invoke, banks, tmp_path, given):
    shown = invoke("stats", "blend", *banks, "-o", tmp_path / "out.safetensors", *given)
    assert shown.exit_code == 2
    assert "expected one of --weight and --prior" in shown.stderr


def test_a_prior_needs_a_count(invoke, banks, tmp_path):
    shown = invoke("stats", "blend", *banks, "-o", tmp_path / "o.safetensors", "--prior", "8")
    assert shown.exit_code == 2
    assert "a prior needs the number of samples" in shown.stderr
    assert not (tmp_path / "o.safetensors").exists()


def test_json_is_the_result_and_nothing_else(invoke, models, tmp_path):
    bank = tmp_path / "s.safetensors"
    shown = invoke("stats", "export", models[0], "-o", bank, "--json")
    assert json.loads(shown.stdout)["nodes"] == {"bn_y": {"channels": 3, "samples": None}}
    shown = invoke("stats", "apply", models[0], bank, "-o", tmp_path / "out.onnx", "--json")
    found = json.loads(shown.stdout)
    assert (found["ok"], found["output"]) == (True, str(tmp_path / "out.onnx"))
    shown = invoke("stats", "blend", bank, bank, "--weight", "0", "-o", bank, "--json")
    assert json.loads(shown.stdout)["path"] == str(bank)
    assert shown.stderr == ""


def test_a_foreign_model_is_refused_unless_forced(invoke, models, banks, tmp_path):
    arrays = {**parameters(), "s": np.ones(3, "float32")}
    other, out = tmp_path / "other.onnx", tmp_path / "out.onnx"
    onnx.save(single(arrays=arrays), other)
    shown = invoke("stats", "apply", other, banks[1], "-o", out)
    assert shown.exit_code == 2
    (line,) = shown.stderr.splitlines()
    assert line.startswith(f"cbn: error: {other}: the statistics were made for another model: ")
    assert "'bn_y'" in line
    assert not out.exists()
    shown = invoke("stats", "apply", other, banks[1], "-o", out, "--force")
    assert shown.exit_code == 0
    assert "forced: operators or weights" in shown.stdout
    assert out.exists()


def test_the_inputs_are_never_touched(invoke, models, banks):
    before = [path.read_bytes() for path in (*models, *banks)]
    for arguments in (
        ("export", models[0], "-o", models[0]),
        ("apply", models[0], banks[0], "-o", models[0]),
        ("apply", models[0], banks[0], "-o", banks[0]),
    ):
        shown = invoke("stats", *arguments)
        assert shown.exit_code == 2
        assert "the output would overwrite an input" in shown.stderr
    assert [path.read_bytes() for path in (*models, *banks)] == before


def test_weights_beside_the_model_are_never_touched(invoke, models, banks, tmp_path):
    model, weights = tmp_path / "apart.onnx", tmp_path / "apart.onnx.data"
    onnx.save(
        onnx.load(models[0]),
        model,
        save_as_external_data=True,
        size_threshold=0,
        location=weights.name,
    )
    before = weights.read_bytes()
    for arguments in (
        ("export", model, "-o", weights),
        ("apply", model, banks[0], "-o", weights),
        ("apply", model, banks[0], "-o", model),
    ):
        shown = invoke("stats", *arguments)
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert "the output would overwrite an input" in shown.stderr
    named = banks[0].rename(tmp_path / "out.onnx.data")
    shown = invoke("stats", "apply", model, named, "-o", tmp_path / "out.onnx")
    assert shown.exit_code == 2
    assert "the output would overwrite an input" in shown.stderr
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "none.onnx", "-o", "out.safetensors"),
        ("apply", DIGITS / "digits.onnx", "none.safetensors", "-o", "out.onnx"),
        ("apply", DIGITS / "digits.onnx", DIGITS / "digits.safetensors", "-o", "out.onnx"),
        ("blend", "none.safetensors", "none.safetensors", "--weight", "1", "-o", "out.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(invoke, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    shown = invoke("stats", *arguments)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert len(shown.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["export", "apply", "blend"])
def test_help_has_an_example_and_explains_each_option(invoke, name):
    shown = invoke("stats", name, "--help")
    assert shown.exit_code == 0
    assert f"Example: cbn stats {name}" in shown.stdout
    assert "--json" in shown.stdout
