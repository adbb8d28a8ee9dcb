"""The proof holds for a rewrite that only rounds anew, and fails for every wrong one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import helper, numpy_helper

from cbn.export import float64
from cbn.export.files import ModelError, load
from cbn.export.proof import prove

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item).copy() for item in model.graph.initializer}


def with_arrays(model: onnx.ModelProto, **changed: np.ndarray) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for item in copy.graph.initializer:
        if item.name in changed:
            item.CopyFrom(numpy_helper.from_array(changed[item.name], item.name))
    return copy


@pytest.fixture(scope="module")
def digits() -> onnx.ModelProto:
    return onnx.load(DIGITS)


def fold_by_hand(model: onnx.ModelProto, mistake: str = "") -> onnx.ModelProto:
    """Fold the first batch norm into the convolution before it, with a mistake if one is named."""
    stored = arrays(model)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    conv = next(node for node in model.graph.node if node.output[0] == norm.input[0])
    scale, bias, mean, var = (stored[name].astype(np.float64) for name in norm.input[1:])
    eps = next(a.f for a in norm.attribute if a.name == "epsilon")
    factor = scale / np.sqrt(var + (0 if mistake == "no eps" else eps))
    if mistake == "channel order":
        factor = np.roll(factor, 1)
    weight = stored[conv.input[1]] * factor[:, None, None, None]
    own = stored[conv.input[2]] if len(conv.input) > 2 else 0.0
    offset = (own - mean) * factor + bias
    if mistake == "a bias dropped":
        offset[3] -= bias[3]
    if mistake == "1e-3":
        offset *= 1.001
    if mistake == "1e-5":
        weight *= 1 + 1e-5
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    first = next(node for node in copy.graph.node if node.name == conv.name)
    last = next(node for node in copy.graph.node if node.name == norm.name)
    del first.input[1:]
    first.input.extend(["folded_weight", "folded_bias"])
    first.output[0] = last.output[0]
    copy.graph.node.remove(last)
    copy.graph.initializer.extend(
        [
            numpy_helper.from_array(weight.astype(np.float32), "folded_weight"),
            numpy_helper.from_array(offset.astype(np.float32), "folded_bias"),
        ]
    )
    return copy


def test_a_right_fold_holds_by_a_wide_margin(digits: onnx.ModelProto) -> None:
    after = fold_by_hand(digits)
    report = prove(
        digits,
        after,
        touched={"/bn1/BatchNormalization_output_0": "/bn1/BatchNormalization_output_0"},
    )
    assert report, report
    assert [row.kind for row in report.rows] == ["output", "intermediate"]
    for row in report.rows:
        assert 0 < row.difference <= row.budget / 4
        assert 0 < row.error <= row.error_budget
        assert row.budget < 1e-5 * row.largest


@pytest.mark.parametrize("mistake", ["no eps", "channel order", "a bias dropped", "1e-3", "1e-5"])
def test_a_wrong_fold_fails(digits: onnx.ModelProto, mistake: str) -> None:
    report = prove(digits, fold_by_hand(digits, mistake))
    assert not report
    assert "it computes something else" in report.rows[0].remark
    assert report.summary.startswith("PROOF FAILED for 1 of 1 values: 'logits'")


def test_an_intermediate_value_counts_even_if_no_output_shows_it() -> None:
    nodes = [
        onnx_models.batch_norm_node(y="h"),
        helper.make_node("Mul", ["h", "zero"], ["gone"]),
        helper.make_node("Add", ["gone", "x"], ["y"]),
    ]
    stored = {**onnx_models.parameters(), "zero": np.zeros(1, np.float32)}
    before = onnx_models.make_model(nodes, arrays=stored)
    after = with_arrays(before, b=stored["b"] + np.float32(1))
    assert prove(before, after)
    report = prove(before, after, touched={"h": "h"})
    assert [row.ok for row in report.rows] == [True, False]


def test_a_deep_network_is_given_what_rounding_does_to_it() -> None:
    depth = 30
    names = ["x", *(f"h{i}" for i in range(depth - 1)), "y"]
    nodes = [onnx_models.batch_norm_node(a, b) for a, b in itertools.pairwise(names)]
    stored = onnx_models.parameters()
    stored["s"] = np.sqrt(stored["v"]) * np.float32(1.1)
    before = onnx_models.make_model(nodes, arrays=stored)
    nudged = with_arrays(before, s=np.nextafter(stored["s"], np.float32(9)))
    assert prove(before, nudged)
    assert not prove(before, with_arrays(before, s=stored["s"] * np.float32(1.0001)))


def test_a_model_that_changes_from_run_to_run_fails() -> None:
    aliased = onnx_models.batch_norm_node(training=True, inputs=["v", "m", "m", "v"])
    model = onnx_models.make_model([aliased])
    report = prove(model, model)
    assert not report
    assert "onnxruntime#29790" in report.rows[0].remark


def test_the_model_before_may_change_from_run_to_run() -> None:
    aliased = onnx_models.batch_norm_node(training=True, inputs=["v", "m", "m", "v"])
    before = onnx_models.make_model([aliased])
    means = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0, 2]),
        helper.make_node("Sub", ["x", "mean"], ["c"]),
        helper.make_node("Mul", ["c", "c"], ["sq"]),
        helper.make_node("ReduceMean", ["sq"], ["var"], axes=[0, 2]),
        helper.make_node("Add", ["var", "eps"], ["add"]),
        helper.make_node("Sqrt", ["add"], ["root"]),
        helper.make_node("Div", ["c", "root"], ["n"]),
        helper.make_node("Mul", ["n", "scale"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["y"]),
    ]
    stored = onnx_models.parameters()
    after = onnx_models.make_model(
        means,
        arrays={
            "eps": np.array(1e-5, np.float32),
            "scale": stored["v"].reshape(3, 1),
            "bias": stored["m"].reshape(3, 1),
        },
    )
    report = prove(before, after)
    assert report, report
    assert "two runs of the model before differ" in report.rows[0].remark


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_budget_follows_the_type(dtype: str) -> None:
    before = onnx_models.single(dtype=dtype)
    unit = np.finfo(dtype).eps
    stored = onnx_models.parameters(dtype=dtype)
    assert prove(before, with_arrays(before, s=np.nextafter(stored["s"], np.array(9, dtype))))
    wrong = with_arrays(before, s=(stored["s"] * (1 + 200 * unit)).astype(dtype))
    assert not prove(before, wrong)


def test_bfloat16_is_proved_in_float64_alone() -> None:
    float32 = onnx_models.single()
    model = ir.from_proto(float32)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    for value in model.graph.initializers.values():
        tensor = value.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy())
        value.const_value = ir.tensor(tensor, name=value.name)
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    x = np.ones((2, 3, 4), ir.DataType.BFLOAT16.numpy())
    report = prove(model, model.clone(), {"x": x})
    assert report
    assert report.rows[0].error is None
    assert "a float64 evaluation alone" in report.summary


def test_integer_outputs_must_be_equal() -> None:
    nodes = [
        onnx_models.batch_norm_node(y="h"),
        helper.make_node("ArgMax", ["h"], ["y"], axis=1),
    ]
    kinds = {"y": onnx.TensorProto.INT64}
    before = onnx_models.make_model(nodes, output_types=kinds)
    assert prove(before, before)
    moved = with_arrays(before, b=onnx_models.parameters()["b"] + np.array([0, 3, 0], np.float32))
    report = prove(before, moved)
    assert not report
    assert report.rows[0].difference >= 1


def test_models_that_give_other_things_are_no_pair() -> None:
    model = onnx_models.single()
    other = onnx_models.make_model([onnx_models.batch_norm_node(y="z")], outputs=["z"])
    report = prove(model, other)
    assert not report
    assert report.summary == "not proved: the model before gives ['y'], the one after ['z']"


def test_a_run_that_fails_is_no_proof() -> None:
    model = onnx_models.single(shape=("N", "C", "L"))  # random inputs get 32 channels, it has 3
    report = prove(model, model)
    assert not report
    assert "the inputs are random: give data that fits" in report.failure


def test_a_value_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no value 'h'"):
        prove(onnx_models.single(), onnx_models.single(), touched={"h": "h"})


def test_the_models_are_not_changed(digits: onnx.ModelProto) -> None:
    model = load(digits)
    twin = ir.to_proto(model).SerializeToString()
    prove(model, model)
    assert ir.to_proto(model).SerializeToString() == twin


def test_the_report_is_plain_json(digits: onnx.ModelProto) -> None:
    report = prove(digits, fold_by_hand(digits, "no eps"))
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert not found["ok"]
    assert found["rows"][0]["name"] == "logits"
    assert found["summary"] == report.summary


def test_a_model_too_large_for_float64_is_measured_as_it_runs(
    digits: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float64, "LARGEST_WIDENED", 10)
    report = prove(digits, fold_by_hand(digits))
    assert report, report
    assert "the model before as it runs unoptimized (the model is too large" in report.summary
    assert (report.rows[0].difference, report.rows[0].budget) == (None, None)
    for mistake in ("channel order", "a bias dropped", "1e-3"):
        assert not prove(digits, fold_by_hand(digits, mistake))


def test_the_users_data_is_what_it_runs_on(digits: onnx.ModelProto) -> None:
    with np.load(DIGITS.with_suffix(".npz")) as data:
        images = data["image"]
    report = prove(digits, fold_by_hand(digits), {"image": images[:40]})
    assert report, report
    assert "proved on the given data" in report.summary
