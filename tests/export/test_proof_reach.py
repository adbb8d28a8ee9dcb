"""What a proof sees: every channel, what no input reaches, and what cannot run or holds nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbn.export import evaluation, fold, lower, proof
from cbn.export.float64 import Nudge
from cbn.export.proof import prove

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def scaled(*factors: float, shape: tuple[int, ...] = (4, 2)) -> onnx.ModelProto:
    """A model y = x * factors, one for each channel."""
    column = np.array(factors, np.float32).reshape(-1, *[1] * (len(shape) - 2))
    node = helper.make_node("Mul", ["x", "c"], ["y"])
    return onnx_models.make_model([node], shape=shape, arrays={"c": column})


@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 3, 3)])
def test_a_wrong_channel_fails_beside_a_large_one(shape: tuple[int, ...]) -> None:
    before = scaled(1e-4, 1e4, shape=shape)
    rounded = scaled(float(np.nextafter(np.float32(1e-4), np.float32(1))), 1e4, shape=shape)
    assert prove(before, rounded)
    report = prove(before, scaled(1.0001e-4, 1e4, shape=shape))
    assert not report
    assert "away in float64 in channel 0, where" in report.rows[0].remark


def test_a_value_without_channels_is_judged_as_a_whole() -> None:
    before = scaled(1e4, shape=(5,))
    assert prove(before, before)
    assert "in channel" not in prove(before, scaled(2e4, shape=(5,))).rows[0].remark


def test_batches_may_differ_in_what_lies_on_axis_1() -> None:
    value = evaluation.Value("output", "y", "y")
    for spread in ([1.0, 5.0], [2.0, 3.0], [7.0, 1.0, 1.0]):
        value.note("largest", np.array(spread))
    value.note("difference", np.array([0.5, 0.25]))
    assert [spread.tolist() for spread in value.spreads()] == [[7.0], [0.5], [0.0]]


def channel_of(size: float, dtype: str = "float16") -> onnx.ModelProto:
    """Conv, then a batch norm that makes channel 0 as small as `size`."""
    stored = {name: np.zeros(2, dtype) for name in "bm"}
    stored["w"] = (np.random.default_rng(0).normal(size=(2, 2, 3, 3)) * 0.1).astype(dtype)
    stored |= {"s": np.array([size, 1], dtype), "v": np.ones(2, dtype)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        onnx_models.batch_norm_node("h"),
    ]
    return onnx_models.make_model(nodes, shape=(4, 2, 5, 5), arrays=stored, dtype=dtype)


def test_a_channel_that_would_be_lost_is_not_folded() -> None:
    (row,) = fold(channel_of(2e-6)).rows
    assert not row.changed
    assert "in channel 0, below float16's smallest normal number" in row.reason
    assert fold(channel_of(1)).rows[0].changed


def test_a_channel_that_training_switched_off_is_folded() -> None:
    result = fold(channel_of(1e-40, "float32"))
    assert result, result
    assert result.rows[0].changed


def test_a_channel_that_was_lost_fails_the_proof() -> None:
    before = channel_of(2e-6)
    after = onnx.ModelProto.FromString(before.SerializeToString())
    scale = next(item for item in after.graph.initializer if item.name == "s")
    scale.CopyFrom(numpy_helper.from_array(np.array([0, 1], np.float16), "s"))
    assert not prove(before, after)


def test_a_nudge_of_what_has_no_full_precision_is_half_of_the_smallest() -> None:
    array = np.array([0.0, 1e-6, 1.0])
    moved = np.abs(Nudge(0, coherent=False).apply(array, 2.0**-11, 0, 2.0**-24) - array)
    np.testing.assert_allclose(moved, [0, 2.0**-25, 2.0**-11], rtol=1e-9)


def chooses(
    condition: bool, *, factor: float = 1.0, outer: bool = False, fails: bool = False
) -> onnx.ModelProto:
    """An If with a batch norm in its then_branch, of which the scale is multiplied."""
    stored = onnx_models.parameters()
    stored["s"] = stored["s"] * np.float32(factor)
    own = [] if outer else [numpy_helper.from_array(array, n) for n, array in stored.items()]
    result = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    node = onnx_models.batch_norm_node("wrong" if fails else "x", "t")
    nodes = [helper.make_node("Reshape", ["x", "bad"], ["wrong"]), node] if fails else [node]
    then = helper.make_graph(nodes, "then", [], result, own)
    result = [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "else", [], result)
    arrays = {"c": np.array(condition), "bad": np.array([1, 3, 7])}
    return onnx_models.make_model(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        shape=(2, 3, 4),
        arrays={**arrays, **(stored if outer else {})},
    )


@pytest.mark.parametrize("outer", [False, True])
def test_a_branch_that_no_input_reaches_is_taken_too(outer: bool) -> None:
    before = chooses(False, outer=outer)
    report = prove(before, chooses(False, factor=5, outer=outer))
    assert [(row.kind, row.ok) for row in report.rows] == [("output", True), ("forced", False)]
    remark = "then_branch of the If that makes 'y' taken in any case: it computes something else"
    assert report.rows[1].remark.startswith(remark)
    right = prove(before, chooses(False, factor=1 + 2.0**-23, outer=outer))
    assert right
    assert right.summary.endswith("1 output and 1 forced output as before")


def test_branches_that_did_not_change_are_left_alone() -> None:
    assert [row.kind for row in prove(chooses(False), chooses(False)).rows] == ["output"]


def test_a_branch_that_the_model_before_cannot_take_is_not_compared() -> None:
    report = prove(chooses(False, fails=True), chooses(False, factor=5, fails=True))
    assert report
    assert "not compared" in report.rows[1].remark
    assert report.summary.endswith(": 1 output as before")


def test_what_is_left_out_of_many_branches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "MOST_BRANCHES", 0)
    report = prove(chooses(False), chooses(False, factor=5))
    assert [(row.kind, row.ok) for row in report.rows] == [("output", True), ("forced", True)]
    assert report.rows[1].remark == "not compared: 1 more changed branch of If nodes"
    assert report.summary.endswith(": 1 output as before")


def test_a_branch_within_another_is_reached() -> None:
    def nested(factor: float) -> onnx.ModelProto:
        model = chooses(False, factor=factor, outer=True)
        inner = model.graph.node[0]
        inner.output[0] = "i"
        result = [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)]
        then = helper.make_graph([inner], "outer_then", [], result)
        result = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "o", [], result)
        node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
        del model.graph.node[:]
        model.graph.node.append(node)
        return model

    report = prove(nested(1), nested(5))
    assert [row.ok for row in report.rows] == [True, False]
    assert "then_branch of the If that makes 'y', then_branch of the If that makes 'i'" in (
        report.rows[1].remark
    )


def test_a_row_inside_a_subgraph_says_what_speaks_for_it() -> None:
    result = lower(chooses(False), affine=True)
    assert result
    assert result.rows[0].changed
    assert result.rows[0].reason == (
        "inside a subgraph: compared by the model's outputs alone, if these inputs reach it"
    )
    assert [row.kind for row in result.proof.rows] == ["output", "forced"]


def test_a_rewrite_that_does_not_load_fails() -> None:
    before = onnx_models.single()
    after = onnx.ModelProto.FromString(before.SerializeToString())
    after.graph.node[0].op_type = "BatchNormalisation"
    report = prove(before, after)
    assert not report
    assert report.summary.startswith("not proved: the model before runs, the one after does not")


def test_nothing_but_nan_proves_nothing() -> None:
    stored = {**onnx_models.parameters(), "b": np.full(3, np.nan, np.float32)}
    model = onnx_models.make_model([onnx_models.batch_norm_node()], arrays=stored, shape=(2, 3, 4))
    report = prove(model, model)
    assert not report
    assert "it holds no finite number" in report.rows[0].remark


def test_nothing_but_zero_is_remarked_on() -> None:
    report = prove(scaled(0, 0), scaled(0, 0))
    assert report
    assert report.rows[0].remark == "little is proved: it is 0 throughout"


def there_and_back(offset: float) -> onnx.ModelProto:
    """A model y = (x + offset) - offset, which loses digits of x when it runs."""
    nodes = [helper.make_node("Add", ["x", "c"], ["h"]), helper.make_node("Sub", ["h", "c"], ["y"])]
    return onnx_models.make_model(nodes, shape=(4, 2), arrays={"c": np.array(offset, np.float32)})


def test_the_budget_shown_is_the_one_applied_where_the_model_before_is_far_off() -> None:
    x = {"x": np.linspace(-3, 3, 8, dtype=np.float32).reshape(4, 2)}
    (row,) = prove(there_and_back(2.0**23), there_and_back(2.0**23), x).rows
    assert row.ok
    assert row.error_before > row.largest / 256
    assert (row.error, row.error_budget) == (row.error_before, 2 * row.error_before)
    (row,) = prove(there_and_back(2.0**23), there_and_back(2.0**27), x).rows
    assert not row.ok
    assert row.difference <= row.budget
    assert row.error > row.error_budget == 2 * row.error_before


def crashes() -> onnx.ModelProto:
    """A batch norm in training mode that onnxruntime does not survive: it gives one statistic."""
    node = onnx_models.batch_norm_node(training=True)
    node.output[2] = ""
    return onnx_models.make_model([node], shape=(4, 3, 5))


def spelled_out(bias: float = 0.0, *, cast_to: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The same by its definition, with the result cast there and back."""
    stored = onnx_models.parameters()
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0, 2]),
        helper.make_node("Sub", ["x", "mean"], ["c"]),
        helper.make_node("Mul", ["c", "c"], ["sq"]),
        helper.make_node("ReduceMean", ["sq"], ["var"], axes=[0, 2]),
        helper.make_node("Add", ["var", "eps"], ["add"]),
        helper.make_node("Sqrt", ["add"], ["root"]),
        helper.make_node("Div", ["c", "root"], ["n"]),
        helper.make_node("Mul", ["n", "scale"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["cast"], to=cast_to),
        helper.make_node("Cast", ["cast"], ["y"], to=TensorProto.FLOAT),
    ]
    arrays = {
        "eps": np.array(1e-5, np.float32),
        "scale": stored["s"].reshape(3, 1),
        "bias": stored["b"].reshape(3, 1) + np.float32(bias),
    }
    return onnx_models.make_model(nodes, shape=(4, 3, 5), arrays=arrays)


def test_what_takes_the_place_of_a_model_that_does_not_run_is_run() -> None:
    report = prove(crashes(), spelled_out())
    assert report, report
    assert "a float64 evaluation, as the model before does not run" in report.summary
    (row,) = report.rows
    assert row.error_before is None
    assert 0 < row.error <= row.error_budget
    assert not prove(crashes(), spelled_out(bias=0.01))


def test_what_runs_without_precision_in_its_place_fails() -> None:
    # In float64 a cast to float16 is none: only the run shows it.
    report = prove(crashes(), spelled_out(cast_to=TensorProto.FLOAT16))
    assert not report
    assert report.rows[0].difference <= report.rows[0].budget
    assert report.rows[0].remark.endswith("where the model before does not run")


def test_what_takes_its_place_must_load() -> None:
    after = spelled_out()
    after.graph.node[0].op_type = "ReduceMedian"
    report = prove(crashes(), after)
    assert not report
    assert report.summary.startswith(
        "not proved: the model before does not run; as to the one after"
    )


def test_neither_is_run_where_both_lack_a_kernel() -> None:
    model = ir.from_proto(onnx_models.single(shape=(2, 3, 4)))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(BFLOAT16), name=value.name)
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    report = prove(model, model.clone(), {"x": np.ones((2, 3, 4), BFLOAT16)})
    assert report, report
    assert (report.rows[0].error, report.rows[0].error_before) == (None, None)
    assert "a float64 evaluation alone" in report.summary
