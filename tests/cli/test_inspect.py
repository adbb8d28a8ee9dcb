"""``cbn inspect``; what it refuses is in test_check.py, for both."""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx_models import batch_norm_node, make_model, parameters, single

from cbn import export


def save(model, folder):
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def test_prints_a_row_for_each_node(command, tmp_path):
    path = save(make_model([batch_norm_node(y="h"), batch_norm_node("h")]), tmp_path)
    shown = command("inspect", path)
    assert (shown.exit_code, shown.stderr) == (0, "")
    title, rule, first, second = shown.stdout.splitlines()[:4]
    assert title.split()[:4] == ["node", "channels", "opset", "mode"]
    assert set(rule) == {"-"}
    assert first.split()[:4] == ["bn_h", "3", "15", "eval"]
    assert second.split()[:4] == ["bn_y", "3", "15", "eval"]


def test_says_what_a_remark_means(invoke, tmp_path):
    shown = invoke("inspect", save(single(training=True), tmp_path))
    assert shown.exit_code == 0
    assert "\n\ntraining-mode: " in shown.stdout


def test_a_node_that_cannot_compute_is_exit_code_1(invoke, tmp_path):
    arrays = {**parameters(), "v": -np.ones(3, "float32")}
    shown = invoke("inspect", save(single(arrays=arrays), tmp_path))
    assert shown.exit_code == 1
    assert "non-positive-variance" in shown.stdout


def test_json_is_the_report_and_nothing_else(command, tmp_path):
    path = save(single(training=True), tmp_path)
    shown = command("inspect", path, "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert json.loads(shown.stdout) == export.inspect(path).to_dict()


def test_json_without_nodes_says_so_on_both_streams(invoke, tmp_path):
    relu = make_model([onnx.helper.make_node("Relu", ["x"], ["y"])])
    shown = invoke("inspect", save(relu, tmp_path), "--json")
    assert shown.exit_code == 2
    assert json.loads(shown.stdout)["rows"] == []
    assert "no BatchNormalization" in shown.stderr


def test_a_name_cannot_steer_the_terminal(invoke, tmp_path):
    model = single()
    model.graph.node[0].name = "bn\x1b[2J [red]"
    shown = invoke("inspect", save(model, tmp_path))
    assert "bn\\x1b[2J [red]" in shown.stdout
