"""recalibrate(): what goes in, what comes out, and when the result is no."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from corruptions import DIGITS, contrast, load_digits
from onnx import helper
from onnx_models import batch_norm_node, make_model, parameters, run, single

import cbn
from cbn import export
from cbn.export.recalibration import estimator

MODEL = DIGITS / "digits.onnx"
IMAGES, LABELS = load_digits()
DARK = contrast(IMAGES)
METHODS = pytest.mark.parametrize("method", ["batch", "sequential"])


def values(samples=24, seed=1):
    """Input for `single`: channels of different mean and deviation."""
    x = np.random.default_rng(seed).normal(size=(samples, 3, 5))
    return (x * [[[1], [2], [0.5]]] + [[[0], [3], [-1]]]).astype(np.float32)


def stored(model):
    return {norm.name: (norm.mean.array, norm.var.array) for norm in export.find_nodes(model)}


@METHODS
def test_one_node_gets_mean_and_population_variance(method):
    x = values()
    result = export.recalibrate(single(), x, method=method, prior=0, held_out=0)
    ((mean, var),) = stored(result.model).values()
    assert result
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2), dtype=np.float64), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(var, x.var(axis=(0, 2), dtype=np.float64), rtol=1e-6)
    (y,) = run(ir.to_proto(result.model), x).values()
    weight, bias = (parameters()[name][:, None] for name in "sb")
    normalized = (y - bias) / weight
    np.testing.assert_allclose(normalized.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.var(axis=(0, 2)), 1, atol=1e-4)


@METHODS
@pytest.mark.parametrize("prior", [8, 24.0, math.inf])
def test_a_prior_counts_as_so_many_samples(method, prior):
    x = values()
    result = export.recalibrate(single(), x, method=method, prior=prior, held_out=0)
    share = 1.0 if math.isinf(prior) else prior / (prior + 24)
    assert result.prior.weight == pytest.approx(share, abs=1e-15)
    ((mean, var),) = stored(result.model).values()
    old = parameters()
    seen = x.mean(axis=(0, 2), dtype=float), x.var(axis=(0, 2), dtype=float)
    for got, before, found in ((mean, old["m"], seen[0]), (var, old["v"], seen[1])):
        expected = share * before.astype(float) + (1 - share) * found
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_what_is_held_out_takes_no_part():
    x = values(50)
    result = export.recalibrate(single(), x, prior=0, held_out=0.2)
    assert (result.samples, result.held_out.samples) == (40, 10)
    ((mean, _),) = stored(result.model).values()
    everything = x.mean(axis=(0, 2), dtype=np.float64)
    assert np.abs(mean - everything).max() > 1e-3


def test_the_model_is_not_changed_and_weights_are_shared():
    before = export.load(MODEL)
    content = ir.to_proto(before).SerializeToString()
    result = export.recalibrate(before, DARK, prior=0)
    assert ir.to_proto(before).SerializeToString() == content
    after = result.model.graph.initializers
    moved = {"running_mean", "running_var"}
    for name, value in before.graph.initializers.items():
        if name.rpartition(".")[2] not in moved:
            assert after[name].const_value is value.const_value


def test_the_result_tells_all():
    result = export.recalibrate(MODEL, DARK, labels=LABELS)
    assert result
    assert [row.name for row in result.rows] == [norm.name for norm in export.find_nodes(MODEL)]
    assert result.changed == 5
    assert result.held_out.metric_after > result.held_out.metric_before
    assert len(result.evidence.rows) == len(result.drift.rows) == 5
    assert result.prior.reason
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["ok"] is True
    assert found["samples"] == 360
    assert found["held_out"]["samples"] == 90
    text = str(result)
    assert "5 of 5 nodes re-estimated on 360 samples" in text
    assert "on 90 held-out samples" in text
    assert all(f"warning: {warning}" in text for warning in result.warnings)


def test_the_drift_is_told_in_words():
    darker = export.recalibrate(MODEL, IMAGES * np.float32(0.3), prior=0)
    assert any("dark" in verdict for verdict in darker.drift.verdicts)


def test_only_some_nodes():
    result = export.recalibrate(MODEL, DARK, prior=0, nodes=["/bn[12]/*"])
    before, after = stored(MODEL), stored(result.model)
    changed = {name for name in before if not np.array_equal(before[name][1], after[name][1])}
    assert changed == {"/bn1/BatchNormalization", "/bn2/BatchNormalization"}
    assert [row.changed for row in result.rows] == [True, True, False, False, False]
    assert result.rows[2].reason == "not asked for"
    with pytest.raises(export.ModelError, match="'bn9'"):
        export.recalibrate(MODEL, DARK, nodes=["bn9"])


def test_a_node_that_was_named_and_cannot_be_is_no():
    graph = helper.make_graph(
        [batch_norm_node("h", "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    nodes = [
        batch_norm_node("x", "h"),
        helper.make_node("If", ["flag"], ["y"], then_branch=graph, else_branch=graph, name="if"),
    ]
    flag = helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    model = make_model(nodes, inputs=[flag])
    data = [{"x": values(), "flag": np.array(True)}, {"x": values(seed=2), "flag": np.array(True)}]
    result = export.recalibrate(model, data, prior=0)
    assert result  # all nodes were asked for, and the reason stands in its row
    assert [row.changed for row in result.rows] == [True, False, False]
    assert "inside if.else_branch" in result.rows[1].reason
    assert not export.recalibrate(model, data, prior=0, nodes=["*"])


@METHODS
def test_training_mode_becomes_eval(method):
    training = DIGITS / "digits_training.onnx"
    results = [
        export.recalibrate(path, DARK, method=method, prior=0, held_out=0)
        for path in (training, MODEL)
    ]
    assert {norm.mode for norm in export.find_nodes(results[0].model)} == {"eval"}
    one, two = (stored(result.model) for result in results)
    for name in two:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("prior", "which"), [(0, "these"), (1e30, "the stored")])
def test_a_row_says_that_its_node_was_in_training_mode(prior, which):
    model = single(training=True, outputs=("y",))
    (row,) = export.recalibrate(model, values(), prior=prior).rows
    assert row.reason == (
        f"was in training mode (normalized each batch by itself), now uses {which} statistics"
    )
    (row,) = export.recalibrate(single(), values(), prior=prior).rows
    assert row.reason == ""


def test_in_training_mode_it_is_compared_with_what_it_stores():
    found = [
        export.recalibrate(DIGITS / name, DARK, prior=0, labels=LABELS).held_out
        for name in ("digits.onnx", "digits_training.onnx")
    ]
    assert found[0].metric_before == found[1].metric_before
    assert found[0].agreement == found[1].agreement


def test_statistics_that_were_never_trained_count_nothing():
    arrays = {**parameters(), "m": np.zeros(3, "float32"), "v": np.ones(3, "float32")}
    for prior in ("auto", 1000):
        result = export.recalibrate(single(arrays=arrays), values(50), prior=prior)
        ((_, var),) = stored(result.model).values()
        np.testing.assert_allclose(var, [1, 4, 0.25], rtol=0.3)
    auto = export.recalibrate(single(arrays=arrays), values(50))
    assert auto.prior.weight == 0
    assert "0 and 1 in all nodes, as before any training" in auto.prior.reason


def folded():
    """The digits' network, its first node's statistics folded into scale and bias: 0 and 1."""
    model = ir.load(MODEL)
    norm = export.find_nodes(model)[0]
    parts = (norm.scale, norm.bias, norm.mean, norm.var)
    scale, bias, mean, var = (part.array.astype(float) for part in parts)
    factor = scale / np.sqrt(var + norm.eps)
    values = (factor * np.sqrt(1 + norm.eps), bias - factor * mean, 0 * mean, 0 * var + 1)
    for value, array in zip(norm.node.inputs[1:], values, strict=True):
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    return model


def test_one_node_of_0_and_1_switches_no_prior_off():
    model = folded()
    clean = export.recalibrate(model, IMAGES)
    assert (clean.prior.weight, clean.changed) == (1, 0)
    assert len(clean.prior.candidates) == 7
    for name, pair in stored(model).items():
        np.testing.assert_array_equal(stored(clean.model)[name], pair)
    kept = export.recalibrate(model, DARK, prior=math.inf)
    assert kept.changed == 0
    for name, pair in stored(model).items():
        np.testing.assert_array_equal(stored(kept.model)[name], pair)


@METHODS
def test_statistics_that_are_no_numbers_go_whatever_the_prior_and_the_row_says_so(method):
    model = ir.load(MODEL)
    norm = export.find_nodes(model)[1]
    broken = ir.tensor(
        np.full(norm.num_features, np.nan, np.float32), name=norm.node.inputs[3].name
    )
    norm.node.inputs[3].const_value = broken
    result = export.recalibrate(model, DARK, prior=math.inf, method=method)
    assert [row.action for row in result.rows] == ["kept", "re-estimated", *["kept"] * 3]
    assert result.changed == 1
    assert norm.name in result.prior.reason
    assert all(np.isfinite(pair).all() for pair in stored(result.model).values())


def spoilt_head():
    """The digits' network with NaN in place of scores that are sure."""
    model = onnx.load(MODEL)
    nan = helper.make_tensor("nan", onnx.TensorProto.FLOAT, [], [math.nan])
    limit = helper.make_tensor("limit", onnx.TensorProto.FLOAT, [], [2.0])
    model.graph.initializer.extend([nan, limit])
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "logits" else name for name in node.output]
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["whole"], ["top"], axes=[1], keepdims=1),
            helper.make_node("Less", ["limit", "top"], ["sure"]),
            helper.make_node("Where", ["sure", "nan", "whole"], ["logits"]),
        ]
    )
    return model


def test_nan_in_the_outputs_is_wrong_and_is_warned_of():
    result = export.recalibrate(spoilt_head(), DARK, labels=LABELS, prior=0)
    assert result.held_out.metric_after < result.held_out.metric_before
    assert not result
    assert any("NaN or infinity stands in the outputs" in text for text in result.warnings)


def regression(outputs):
    """A batch norm, the mean over positions, and a map onto so many numbers."""
    weight = np.random.default_rng(0).normal(size=(3, outputs)).astype(np.float32)
    nodes = [
        batch_norm_node(y="h"),
        helper.make_node("ReduceMean", ["h"], ["flat"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    return make_model(nodes, arrays={**parameters(), "w": weight})


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_large_change_of_numbers_is_warned_of_without_a_metric(outputs):
    model, x = regression(outputs), values(100) + np.float32(30)
    result = export.recalibrate(model, x, prior=0)
    assert result.held_out.change > 1
    words = "no output reads as classes" if outputs == 1 else "if 'y' is no scores of 4 classes"
    assert any(words in text for text in result.warnings)
    assert ("the outputs change by" if outputs == 1 else "('y', read as scores of 4") in (
        result.summary
    )
    if outputs > 1:
        named = export.recalibrate(model, x, prior=0, scores="y")
        assert not any("is no scores" in text for text in named.warnings)
    judged = export.recalibrate(model, x, prior=0, metric=lambda outputs, labels: 0.0)
    assert not any("reads as classes" in w or "is no scores" in w for w in judged.warnings)


def test_the_result_says_what_was_read_as_classes_and_how():
    result = export.recalibrate(MODEL, DARK, labels=LABELS)
    assert result.prior.reason.endswith("; judged by 'logits', read as scores of 10 classes")
    assert "top-1 accuracy of 'logits'" in result.summary
    assert "decisions stay ('logits', read as scores of 10 classes)" in result.summary
    with pytest.raises(ValueError, match="no output 'scores' to read scores from"):
        export.recalibrate(MODEL, DARK, scores="scores")


def test_a_checkpoint_goes_with_a_result_that_holds_alone(tmp_path):
    path = tmp_path / "run.checkpoint"
    worse = {"metric": lambda outputs, labels: -float(np.abs(outputs["logits"]).mean())}
    refused = export.recalibrate(MODEL, DARK, prior=0, checkpoint=path, **worse)
    assert not refused
    assert path.exists()
    again = export.recalibrate(MODEL, DARK, prior=0, checkpoint=path, keep_checkpoint=True)
    assert again
    assert path.exists()
    assert export.recalibrate(MODEL, DARK, prior=0, checkpoint=path)
    assert not path.exists()
    for name, pair in stored(refused.model).items():
        np.testing.assert_array_equal(stored(again.model)[name], pair)


def test_broken_statistics_are_replaced():
    arrays = {**parameters(), "v": np.array([1, np.nan, np.inf], "float32")}
    result = export.recalibrate(single(arrays=arrays), values(50))
    ((_, var),) = stored(result.model).values()
    np.testing.assert_allclose(var, [1, 4, 0.25], rtol=0.3)


def test_a_metric_that_falls_is_no():
    def worse(outputs, labels):
        return -float(np.abs(outputs["logits"]).mean())  # contrast makes them small

    result = export.recalibrate(MODEL, DARK, prior=0, metric=worse)
    assert result.worse
    assert not result
    assert "worse" in result.summary
    assert export.recalibrate(MODEL, DARK, prior=0, metric=lambda outputs, labels: 1.0)


def test_one_class_makes_labelled_accuracy_worse_and_that_is_no():
    ones = np.flatnonzero(LABELS == 1)
    mixed = np.concatenate([IMAGES[ones], IMAGES[:12]])
    labels = np.concatenate([LABELS[ones], LABELS[:12]])
    result = export.recalibrate(MODEL, mixed[:46], labels=labels[:46], prior=0)
    assert result.held_out.metric_before > result.held_out.metric_after
    assert not result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "expected method to be one of 'batch', 'sequential', got 'exact'"),
        ({"prior": -1}, "expected prior to be 'auto' or a number of samples >= 0, got -1"),
        ({"prior": math.nan}, "expected prior to be 'auto' or a number"),
        ({"prior": "much"}, "got 'much'"),
        ({"prior": True}, "got True"),
        ({"held_out": 1}, "expected held_out from 0 to less than 1, got 1"),
        ({"held_out": -0.1}, "got -0.1"),
        ({"held_out": 0}, "prior 'auto' needs data that is held out"),
        ({"held_out": 0, "prior": 0, "labels": LABELS}, "labels needs data that is held out"),
        ({"held_out": 0, "prior": 0, "metric": max}, "a metric needs data that is held out"),
        ({"method": "sequential", "executor": "tcp://h:1"}, "an executor needs method 'batch'"),
        ({"batch_size": 0}, "expected batch_size of 1 or more"),
        ({"labels": LABELS[:9]}, "got 9 labels for 450 samples"),
    ],
)
def test_options_that_do_not_hold(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        export.recalibrate(MODEL, DARK, **options)


@METHODS
def test_progress_is_told(method):
    told = []
    export.recalibrate(
        MODEL, DARK, method=method, batch_size=90, progress=lambda *what: told.append(what)
    )
    measured = [what for what in told if what[2] is not None]
    assert measured[-1][1] == measured[-1][2] == 4
    assert [stage for stage, _, _ in told[-2:]] == ["choosing the prior", "comparing"]


def test_the_bank_of_a_result_has_the_counts(tmp_path):
    result = export.recalibrate(MODEL, DARK, prior=0)
    result.bank("dark").save(tmp_path / "dark.safetensors")
    bank = export.StatisticsBank.load(tmp_path / "dark.safetensors")
    assert {found.samples for found in bank.statistics.values()} == {360}
    assert bank.statistics["/bn1/BatchNormalization"].count == 360 * 64
    given = bank.apply(MODEL)
    assert stored(given.model).keys() == stored(result.model).keys()
    for name, pair in stored(result.model).items():
        np.testing.assert_array_equal(pair, stored(given.model)[name])


@pytest.mark.parametrize(
    ("prior", "domain"), [(math.inf, "1 stored + 0 dark"), (120, "0.25 stored + 0.75 dark")]
)
def test_the_bank_claims_no_counts_of_what_was_stored(prior, domain):
    bank = export.recalibrate(MODEL, DARK, prior=prior).bank("dark")
    assert {(found.samples, found.count) for found in bank.statistics.values()} == {(None, None)}
    assert bank.domain == domain


@METHODS
def test_freeze_takes_it_as_its_estimator(method):
    training = DIGITS / "digits_training.onnx"
    found = estimator(method=method)
    frozen = export.freeze(
        training, "recalibrated", estimator=found, data={"image": DARK}, prove=False
    )
    assert frozen
    expected = export.recalibrate(MODEL, DARK, method=method, prior=0, held_out=0)
    one, two = stored(frozen.model), stored(expected.model)
    for name in two:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6, atol=1e-7)


def test_importing_it_needs_no_optional_package():
    code = (
        "import sys, cbn.export.recalibration; "
        "print({'PIL', 'dask', 'distributed', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(cbn.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
