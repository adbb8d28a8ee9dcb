"""Lowering: what few providers run becomes what all of them run, with the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import helper

import cbn
from cbn import export
from cbn.export.files import ModelError
from cbn.export.lift import lift
from cbn.export.lower import lower
from cbn.export.nodes import find_nodes
from cbn.export.sessions import make_session, run_session

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
X = np.random.default_rng(5).normal(3, 2, (4, 3, 6)).astype(np.float32)


def run(model: ir.Model, x: np.ndarray = X, times: int = 1) -> dict[str, np.ndarray]:
    session = make_session(model, optimize=False)
    for _ in range(times):
        result = run_session(session, {"x": x})
    return result


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for graph in model.graphs() for node in graph]


def test_the_digits_network_needs_no_training_kernel() -> None:
    result = lower(FOLDER / "digits_training.onnx", data=FOLDER / "digits.npz")
    assert result, result
    assert result.changed == 5
    assert find_nodes(result.model) == []
    assert all(row.error <= row.budget for row in result.rows)
    assert [row.kind for row in result.proof.rows] == ["output"] + ["intermediate"] * 5


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 17, 18, 21])
def test_training_mode_gives_what_the_definition_gives(opset: int) -> None:
    outputs = ["y", "y_mean", "y_var"]
    node = onnx_models.batch_norm_node(training=True, opset=opset, momentum=0.75)
    result = lower(onnx_models.make_model([node], opset=opset, outputs=outputs))
    assert result, result
    assert "BatchNormalization" not in kinds(result.model)
    found = run(result.model)
    stored = {name: a.astype(np.float64) for name, a in onnx_models.parameters().items()}
    stats = cbn.batch_stats(X)
    layer = cbn.batch_norm(
        X, None, None, *(stored[k].astype(np.float32) for k in "sb"), training=True
    )
    assert np.abs(found["y"] - layer).max() <= 8 * np.spacing(np.abs(layer).max())
    for name, old, new in (("y_mean", "m", stats.mean), ("y_var", "v", stats.var)):
        wanted = 0.75 * stored[old] + 0.25 * new
        assert np.abs(found[name] - wanted).max() <= 4 * np.spacing(np.float32(wanted.max()))


def test_running_statistics_that_nobody_uses_are_not_made() -> None:
    used = onnx_models.make_model(
        [onnx_models.batch_norm_node(training=True)], outputs=["y", "y_mean"]
    )
    for model, count in ((onnx_models.single(training=True), 0), (used, 1)):
        result = lower(model)
        assert kinds(result.model).count("Reshape") == count
        left = set(result.model.graph.initializers)
        assert not left & {"s", "b", "v"}
        assert ("m" in left) == bool(count)


def test_saved_statistics_are_those_of_the_batch() -> None:
    node = onnx_models.batch_norm_node(training=True, opset=9)
    names = ["y_saved_mean", "y_saved_var"]
    result = lower(onnx_models.make_model([node], opset=9, outputs=["y", *names]), prove=False)
    found = run(result.model)
    stats = cbn.batch_stats(X)
    np.testing.assert_allclose(found[names[0]], stats.mean, rtol=1e-6)
    np.testing.assert_allclose(found[names[1]], stats.var, rtol=1e-6)


def test_nothing_is_written_into_initializers() -> None:
    aliased = onnx_models.batch_norm_node(training=True, inputs=["v", "m", "m", "v"])
    model = onnx_models.make_model([aliased])
    result = lower(model)
    assert result, result
    assert "two runs of the model before differ" in result.proof.rows[0].remark
    once, again = (run(result.model, times=times)["y"] for times in (1, 3))
    np.testing.assert_array_equal(once, again)


def test_far_from_zero_nothing_is_lost() -> None:
    x = (1e4 + np.random.default_rng(0).normal(size=(64, 3, 50))).astype(np.float32)
    result = lower(onnx_models.single(training=True), prove=False)
    stored = onnx_models.parameters()
    layer = cbn.batch_norm(x, None, None, stored["s"], stored["b"], training=True)
    assert np.abs(run(result.model, x)["y"] - layer).max() < 1e-3


def test_16_bit_types_are_reduced_in_float32() -> None:
    x = np.random.default_rng(0).normal(200, 3, (64, 3, 50)).astype(np.float16)
    result = lower(onnx_models.single(training=True, dtype="float16"), data={"x": x})
    assert result, result
    y = run(result.model, x)["y"]
    assert y.dtype == np.float16
    stored = onnx_models.parameters(dtype="float16")
    wide = [stored[name].astype(np.float32) for name in "sb"]
    layer = cbn.batch_norm(x.astype(np.float32), None, None, *wide, training=True)
    assert np.abs(y - layer).max() <= np.spacing(np.float16(np.abs(layer).max()))


def test_parameters_that_are_computed_stay_computed() -> None:
    scale = helper.make_node("Abs", ["given"], ["s"])
    given = helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, [3])
    stored = {name: a for name, a in onnx_models.parameters().items() if name != "s"}
    model = onnx_models.make_model(
        [scale, onnx_models.batch_norm_node(training=True)], arrays=stored, inputs=[given]
    )
    assert lower(model)


def test_functions_are_inlined_and_subgraphs_lowered_in_place() -> None:
    constants = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in onnx_models.parameters().items()
    ]
    body = helper.make_function(
        "local",
        "Block",
        ["x"],
        ["y"],
        [*constants, onnx_models.batch_norm_node(training=True)],
        [helper.make_opsetid("", 15)],
    )
    call = helper.make_node("Block", ["x"], ["y"], domain="local")
    result = lower(onnx_models.make_model([call], arrays={}, functions=[body]))
    assert result, result
    assert "functions that hold batch norms were inlined" in result.notes

    branches = {
        name: helper.make_graph(
            [onnx_models.batch_norm_node(y=name, training=True)],
            name,
            [],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)],
        )
        for name in ("one", "two")
    }
    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branches["one"], else_branch=branches["two"]
    )
    model = onnx_models.make_model([choice], inputs=[onnx_models.flag("c")])
    result = lower(model)
    assert result, result
    assert "BatchNormalization" not in kinds(result.model)


def test_eval_mode_stays_unless_affine_is_asked_for() -> None:
    result = lower(onnx_models.single())
    assert result
    assert result.changed == 0
    assert result.proof is None
    assert result.rows[0].reason == "eval mode: every provider runs it as it is"
    result = lower(onnx_models.single(), affine=True)
    assert result, result
    assert kinds(result.model) == ["Sub", "Mul", "Add"]


def test_affine_keeps_digits_where_the_node_itself_loses_them() -> None:
    x = (1e6 + np.random.default_rng(0).normal(size=(64, 3, 50))).astype(np.float32)
    stored = {**onnx_models.parameters(), "m": np.full(3, 1e6, np.float32)}
    model = onnx_models.single(arrays=stored)
    result = lower(model, affine=True, data={"x": x})
    assert result, result
    exact = x.astype(np.float64) - 1e6
    var = stored["v"].astype(np.float64) + float(np.float32(1e-5))
    exact = exact / np.sqrt(var)[:, None] * stored["s"][:, None] + stored["b"][:, None]
    assert np.abs(run(result.model, x)["y"] - exact).max() < 1e-5
    assert np.abs(run(export.load(model), x)["y"] - exact).max() > 1e-3


@pytest.mark.parametrize("opset", [7, 8])
def test_statistics_per_activation(opset: int) -> None:
    rng = np.random.default_rng(3)
    stored = {name: rng.uniform(0.5, 2, (3, 6)).astype(np.float32) for name in "sbmv"}
    node = onnx_models.batch_norm_node(opset=opset, spatial=0)
    model = onnx_models.make_model([node], arrays=stored, opset=opset, shape=("N", 3, 6))
    result = lower(model)
    assert result, result
    s, b, m, v = (stored[name].astype(np.float64) for name in "sbmv")
    wanted = (X - m) / np.sqrt(v + 1e-5) * s + b
    assert np.abs(run(result.model)["y"] - wanted).max() < 1e-5


@pytest.mark.parametrize(("opset", "extra"), [(1, {"consumed_inputs": [0, 0, 0, 1, 1]}), (6, {})])
@pytest.mark.parametrize("is_test", [0, 1])
def test_old_opsets_are_lifted(opset: int, extra: dict[str, list[int]], is_test: int) -> None:
    outputs = ["h"] if is_test else ["h", "h_mean", "h_var", "sm", "sv"]
    nodes = [
        helper.make_node(
            "BatchNormalization", ["x", *"sbmv"], outputs, name="bn", is_test=is_test, **extra
        ),
        helper.make_node("Add", ["h", "h"], ["y"]),
    ]
    model = onnx_models.make_model(nodes, opset=opset)
    result = lower(model)
    assert result, result
    assert result.model.opset_imports[""] == 7
    assert result.model.graph.inputs[0].shape == ["N", 3, "L"]
    assert any("version converter" in note for note in result.notes)
    stored = onnx_models.parameters()
    wanted = 2 * cbn.batch_norm(
        X, *(None if not is_test else stored[n].copy() for n in "mv"), stored["s"], stored["b"],
        training=not is_test,
    )  # fmt: skip
    assert np.abs(run(result.model)["y"] - wanted).max() < 1e-5
    if is_test:
        assert result.rows[0].action == "lifted to opset 7"


def test_what_the_converter_refuses_is_one_clear_error() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", *"sbmv"], ["h"], is_test=1),
        helper.make_node("Mul", ["h", "m"], ["y"], broadcast=1, axis=1),
    ]
    model = onnx_models.make_model(nodes, opset=6)
    with pytest.raises(ModelError, match="version converter cannot lift the model from opset 6"):
        lower(model)
    inside = onnx_models.make_model(
        [
            helper.make_node("Abs", ["s"], ["computed"]),
            onnx_models.batch_norm_node(inputs=["computed", "b", "m", "v"], is_test=1),
        ],
        opset=6,
        arrays={k: v for k, v in onnx_models.parameters().items() if k != "s"},
        inputs=[helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [3])],
    )
    with pytest.raises(ModelError, match="'bn_y' has no constant scale"):
        lift(export.load(inside))


def test_only_the_nodes_asked_for() -> None:
    nodes = [
        onnx_models.batch_norm_node(y="h", training=True),
        onnx_models.batch_norm_node("h", training=True),
    ]
    model = onnx_models.make_model(nodes)
    result = lower(model, nodes=["bn_y"], prove=False)
    assert [row.changed for row in result.rows] == [False, True]
    assert [norm.name for norm in find_nodes(result.model)] == ["bn_h"]
    with pytest.raises(ModelError, match="no BatchNormalization node is named 'other'"):
        lower(model, nodes=["other"])


def test_a_node_that_cannot_be_lowered_says_why() -> None:
    overridable = onnx_models.single()
    overridable.graph.input.append(helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [3]))
    result = lower(overridable, affine=True)
    assert not result
    assert (
        result.rows[0].reason == "scale is not fixed by the model: initializer, also a graph input"
    )


def test_a_model_without_nodes_is_refused() -> None:
    with pytest.raises(ModelError, match="no BatchNormalization node: nothing to do"):
        lower(onnx_models.make_model([helper.make_node("Abs", ["x"], ["y"])]))


def test_the_model_given_is_not_changed() -> None:
    model = export.load(onnx_models.single(training=True))
    before = ir.to_proto(model).SerializeToString()
    lower(model)
    assert ir.to_proto(model).SerializeToString() == before
