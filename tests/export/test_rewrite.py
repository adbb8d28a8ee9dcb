"""What every rewrite shares: rows, truth, the proof, and a model before that stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import TensorProto, helper

from cbn import export
from cbn.export.constants import resolve
from cbn.export.data import DataError
from cbn.export.files import ModelError, load
from cbn.export.nodes import find_nodes
from cbn.export.rewrite import KEPT, Changes, RewriteRow, drop_unused, is_fixed, run_rewrite


def keep(model: ir.Model) -> Changes:
    return Changes([RewriteRow(norm.name, KEPT) for norm in find_nodes(model)])


def scale_by(factor: float):
    """A rewrite that moves every scale."""

    def rewrite(model: ir.Model) -> Changes:
        rows = []
        for norm in find_nodes(model):
            value = norm.node.inputs[1]
            value.const_value = ir.tensor((norm.scale.array * factor).astype(np.float32))
            output = norm.node.outputs[0].name
            rows.append(RewriteRow(norm.name, "scaled", value=output))
        return Changes(rows, {row.value: row.value for row in rows})

    return rewrite


def test_nothing_changed_needs_no_proof() -> None:
    result = run_rewrite(onnx_models.single(), keep)
    assert result
    assert (result.changed, result.proof) == (0, None)
    assert result.summary == "0 of 1 node changed; nothing to prove"


def test_a_wrong_rewrite_is_false_and_its_rows_have_the_numbers() -> None:
    nodes = [onnx_models.batch_norm_node(y="h"), onnx_models.batch_norm_node("h")]
    result = run_rewrite(onnx_models.make_model(nodes), scale_by(1.001))
    assert not result
    assert [row.name for row in result.rows] == ["bn_h", "bn_y"]
    assert all(row.error > row.budget for row in result.rows)
    assert "PROOF FAILED for 2 of 2 values" in result.summary


def test_without_a_proof_the_rows_decide() -> None:
    result = run_rewrite(onnx_models.single(), scale_by(1.001), prove_it=False)
    assert result
    assert result.summary == "1 of 1 node changed; not proved: no proof was asked for"

    def fail(model: ir.Model) -> Changes:
        return Changes([RewriteRow("bn_y", KEPT, ok=False, reason="it cannot be")])

    assert not run_rewrite(onnx_models.single(), fail)


def test_a_rewrite_that_means_another_result_gives_its_own_reference() -> None:
    meant = load(onnx_models.single(arrays={**onnx_models.parameters(), "s": np.ones(3, "f4")}))

    def rewrite(model: ir.Model) -> Changes:
        model.graph.initializers["s"].const_value = ir.tensor(np.ones(3, np.float32))
        return Changes([RewriteRow("bn_y", "set to 1", value="y")], reference=meant)

    assert run_rewrite(onnx_models.single(), rewrite)


def test_the_model_before_is_not_changed() -> None:
    model = load(onnx_models.single())
    before = ir.to_proto(model).SerializeToString()
    result = run_rewrite(model, scale_by(2.0), prove_it=False)
    assert ir.to_proto(model).SerializeToString() == before
    assert ir.to_proto(result.model).SerializeToString() != before


def test_json_leaves_the_model_out() -> None:
    result = run_rewrite(onnx_models.single(), scale_by(1.001))
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(found) == {
        "ok",
        "changed",
        "summary",
        "rows",
        "notes",
        "differences",
        "proof",
    }
    assert found["proof"]["ok"] is False
    assert found["rows"][0]["action"] == "scaled"


def test_data_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="input 'x'"):
        run_rewrite(onnx_models.single(), scale_by(1), data={"x": np.zeros((2, 5, 4), "f4")})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"m": np.zeros(2, "f4")}, r"expected mean of shape \[3\], got \[2\]"),
        ({"s": np.ones((3, 1), "f4")}, r"expected scale of shape \[3\], got \[3, 1\]"),
        ({"v": np.float32(1).reshape(())}, r"expected var of shape \[3\], got \[\]"),
        ({k: np.ones(4, "f4") for k in "sbmv"}, r"expected scale of shape \[3\], got \[4\]"),
    ],
)
@pytest.mark.parametrize("rewrite", [export.fold, export.lower, export.freeze])
def test_parameters_that_do_not_fit_are_one_clear_error(rewrite, changed, message) -> None:
    model = onnx_models.single(arrays={**onnx_models.parameters(), **changed})
    with pytest.raises(ModelError, match=f"BatchNormalization 'bn_y': {message}"):
        rewrite(model)


def old_file() -> onnx.ModelProto:
    """A file of IR version 3, where every initializer is a graph input too."""
    model = onnx_models.single(opset=8)
    model.ir_version = 3
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, "L"])
    )
    for name in "sbmv":
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]))
    return model


def test_old_files_stay_old_and_whole(tmp_path: Path) -> None:
    result = export.lower(old_file(), affine=True)
    assert result, result
    graph = result.model.graph
    assert result.model.ir_version == 3
    assert {value.name for value in graph.inputs} == {"x", *graph.initializers}
    assert not set("sbmv") & set(graph.initializers)
    export.save(result.model, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


def test_a_constant_is_fixed_unless_the_caller_may_feed_it() -> None:
    model = load(old_file())
    constant = resolve(model.graph.node(0).inputs[1])
    assert constant.overridable
    assert is_fixed(constant, model)
    model.ir_version = 4
    assert not is_fixed(constant, model)
    assert not is_fixed(resolve(model.graph.inputs[0]), model)


def test_what_nothing_uses_any_more_goes_with_what_made_it() -> None:
    nodes = [
        helper.make_node("Identity", ["s"], ["t"]),
        helper.make_node("Identity", ["t"], ["u"]),
        onnx_models.batch_norm_node(inputs=["u", "b", "m", "v"]),
        onnx_models.batch_norm_node(y="z"),
    ]
    model = load(onnx_models.make_model(nodes, outputs=["y", "z"]))
    norm = model.graph.node(2)
    old = list(norm.inputs[1:])
    model.graph.outputs.pop(0)
    model.graph.remove(norm, safe=True)
    drop_unused(old)
    assert [node.op_type for node in model.graph] == ["BatchNormalization"]
    assert set(model.graph.initializers) == {"s", "b", "m", "v"}
