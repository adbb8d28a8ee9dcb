"""What folding does to a graph beside the numbers: names, readers, inputs, subgraphs, functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import folding_cases
import numpy as np
import onnx
import onnx_ir as ir
import plain_onnx
import pytest
from folding_cases import Case, Layer, array, batch_norm, build
from folding_matrix import C, M, conv, image
from onnx import TensorProto, helper, numpy_helper

from cbn import export
from cbn.export.folding import fold


def chain(*layers: Layer, shape: tuple[int, ...] = image(), **more: object) -> onnx.ModelProto:
    return build(Case("chain", layers, shape, **more))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def same_outputs(before: onnx.ModelProto, after: ir.Model, bound: float = 1e-6) -> None:
    """Both agree in float64, to `bound` of the largest sum of sizes."""
    shape = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(3).normal(size=shape)
    wanted, proto = plain_onnx.evaluate(before, x), ir.to_proto(after)
    found = plain_onnx.evaluate(proto, x)
    sizes = plain_onnx.evaluate(proto, x, magnitudes=True)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert (np.abs(found[name] - value) <= bound * sizes[name]).all()


def test_the_given_model_is_not_changed() -> None:
    before = export.load(chain(conv(), batch_norm(M)))
    content = ir.to_proto(before).SerializeToString()
    assert fold(before, prove=False).changed == 1
    assert ir.to_proto(before).SerializeToString() == content


def test_the_proof_holds_and_its_numbers_reach_the_rows() -> None:
    result = fold(chain(conv(), batch_norm(M)))
    assert result
    (row,) = result.rows
    assert row.value == "y"
    assert row.error is not None
    assert row.budget is not None
    assert row.error <= row.budget


def test_a_node_that_all_its_readers_take_in() -> None:
    before = chain(batch_norm(C), conv())
    other = helper.make_node("Conv", ["v0", "w2"], ["z"], name="second", kernel_shape=[1, 1])
    before.graph.node.append(other)
    before.graph.initializer.append(
        numpy_helper.from_array(array(3, C, 1, 1).astype(np.float32), "w2")
    )
    before.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    result = fold(before, prove=False)
    assert operators(result.model) == ["Conv", "Conv"]
    assert result.rows[0].action == "folded into Conv 'n1', Conv 'second'"
    same_outputs(before, result.model)


def test_one_reader_that_does_not_keeps_it_for_all() -> None:
    before = chain(batch_norm(C), conv())
    before.graph.node.append(helper.make_node("Tanh", ["v0"], ["z"], name="second"))
    before.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    result = fold(before, prove=False)
    assert "Tanh 'second'" in result.rows[0].reason
    assert ir.to_proto(result.model).graph == ir.to_proto(ir.from_proto(before)).graph


def test_a_reader_of_the_shape_alone_does_not_count() -> None:
    before = chain(conv(), batch_norm(M))
    before.graph.node.append(helper.make_node("Shape", ["v0"], ["size"]))
    before.graph.output.append(helper.make_tensor_value_info("size", TensorProto.INT64, None))
    result = fold(before, prove=False)
    assert operators(result.model) == ["Conv", "Shape"]


def test_two_nodes_around_one_convolution_round_its_weight_once() -> None:
    case = Case("chain", [batch_norm(C), conv(), batch_norm(M, seed=5)], image(), dtype="float16")
    before = build(case)
    result = fold(before, prove=False)
    assert operators(result.model) == ["Conv"]
    stored = result.model.graph.initializers["1_1"].const_value.numpy()
    arrays = {t.name: numpy_helper.to_array(t).astype(float) for t in before.graph.initializer}
    first, second = (
        arrays[f"{i}_1"] / np.sqrt(arrays[f"{i}_4"] + float(np.float32(1e-3))) for i in (0, 2)
    )
    exact = arrays["1_1"] * first.reshape(1, -1, 1, 1) * second.reshape(-1, 1, 1, 1)
    assert np.array_equal(stored, exact.astype(np.float16))


def test_two_batch_norms_become_one() -> None:
    before = chain(Layer("Sigmoid"), batch_norm(C), batch_norm(C, seed=4), Layer("Sigmoid"))
    result = fold(before, prove=False)
    assert operators(result.model) == ["Sigmoid", "BatchNormalization", "Sigmoid"]
    actions = [row.action for row in result.rows]
    assert actions == [
        "folded into BatchNormalization 'n2'",
        "merged with BatchNormalization 'n1'",
    ]


def test_mul_and_add_beside_a_node_that_stays_go_into_it() -> None:
    column = array(C, 1, 1, seed=4)
    layers = [
        Layer("Relu"),
        Layer("Add", {1: column}),
        batch_norm(C),
        Layer("Mul", {1: column}),
        Layer("Relu"),
    ]
    before = chain(*layers)
    result = fold(before, prove=False)
    assert operators(result.model) == ["Relu", "BatchNormalization", "Relu"]
    assert result.rows[0].action == "merged with Mul 'n3', Add 'n1'"
    assert "Relu 'n4' stands between" in result.rows[0].reason
    same_outputs(before, result.model)


def test_into_elementwise_leaves_a_mul_and_an_add() -> None:
    column = array(C, 1, 1, seed=4)
    both = [Layer("Mul", {1: column}), Layer("Add", {1: column})]
    before = chain(Layer("Relu"), batch_norm(C), *both, Layer("Relu"))
    result = fold(before, into_elementwise=True, prove=False)
    assert operators(result.model) == ["Relu", "Mul", "Add", "Relu"]
    assert result
    same_outputs(before, result.model)


def test_into_elementwise_of_an_old_opset() -> None:
    column = array(C, seed=4)
    both = [Layer("Mul", {1: column}), Layer("Add", {1: column})]
    before = chain(Layer("Relu"), batch_norm(C), *both, Layer("Relu"), opset=6)
    result = fold(before, into_elementwise=True, prove=False)
    assert operators(result.model) == ["Relu", "Mul", "Add", "Relu"]
    same_outputs(before, result.model)


def test_a_node_without_a_name_is_named_by_its_result() -> None:
    before = chain(Layer("MatMul", {1: array(C, 3)}), batch_norm(3), shape=(4, C))
    for node in before.graph.node:
        node.name = ""
    result = fold(before, prove=False)
    assert [(row.name, row.action) for row in result.rows] == [("y", "folded into MatMul 'v0'")]
    assert operators(result.model) == ["MatMul", "Add"]


def test_an_add_behind_a_product_takes_the_shift() -> None:
    bias = Layer("Add", {1: array(3)})
    before = chain(batch_norm(C), Layer("MatMul", {1: array(C, 3)}), bias, shape=(4, C))
    result = fold(before, prove=False)
    assert operators(result.model) == ["MatMul", "Add"]
    same_outputs(before, result.model)


@pytest.mark.parametrize("readers", ["an output", "a second reader"])
def test_clone_leaves_the_others_what_they_read(readers: str) -> None:
    before = chain(conv(), Layer("Identity"), batch_norm(M), readers=readers)
    result = fold(before, clone=True, prove=False)
    assert sorted(operators(result.model)).count("Conv") == 2
    assert "copied, to run twice" in result.rows[0].reason
    same_outputs(before, result.model)


@pytest.mark.parametrize("computed", [0, 1])
def test_clone_copies_what_lies_between_too(computed: int) -> None:
    swap = Layer("Transpose", {}, {"perm": [0, 2, 1]})
    add = Layer("Add", {1 - computed: array(3)}, {}, computed)
    layers = [Layer("MatMul", {1: array(C, 3)}), add, swap, batch_norm(3)]
    before = chain(*layers, shape=(2, 5, C), readers="an output")
    result = fold(before, clone=True)
    assert result
    kinds = sorted(operators(result.model))
    assert kinds == ["Add", "Add", "MatMul", "MatMul", "Transpose", "Transpose"]
    same_outputs(before, result.model)


def test_clone_starts_where_the_others_read() -> None:
    swap = Layer("Transpose", {}, {"perm": [0, 2, 1]})
    layers = [Layer("MatMul", {1: array(C, 3)}), swap, batch_norm(3)]
    before = chain(*layers, shape=(2, 5, C))
    before.graph.output.append(helper.make_tensor_value_info("v0", TensorProto.FLOAT, None))
    result = fold(before, clone=True, prove=False)
    assert operators(result.model) == ["MatMul", "MatMul", "Add", "Transpose"]
    same_outputs(before, result.model)


def test_clone_is_not_used_where_another_way_is_open() -> None:
    unit = Layer("Conv", {1: array(3, M, 1, 1)})
    before = chain(conv(), batch_norm(M), unit, readers="an output")
    before.graph.output[1].name = "v0"
    result = fold(before, clone=True, prove=False)
    assert result.rows[0].action == "folded into Conv 'n2'"
    assert result.rows[0].reason == ""


def test_inputs_with_defaults_are_taken_when_told_to() -> None:
    before = chain(conv(), batch_norm(M), source="input")
    result = fold(before, fix_inputs=True, prove=False)
    assert [value.name for value in result.model.graph.inputs] == ["x"]
    same_outputs(before, result.model)


def test_below_ir_version_4_each_initializer_stays_an_input() -> None:
    before = chain(conv(bias=False), batch_norm(M), source="input of IR 3", opset=8)
    result = fold(before, prove=False)
    graph = result.model.graph
    assert {value.name for value in graph.inputs} == {"x", *graph.initializers}
    same_outputs(before, result.model)


def branch(name: str) -> onnx.GraphProto:
    """A branch of If with a Conv and a batch norm over the outer x and outer parameters."""
    inner = build(Case("inner", [conv(), batch_norm(M)], image()))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in inner.graph.node]
    for node in nodes:
        node.name = f"{name}_{node.name}"
        node.output[0] = f"{name}_{node.output[0]}"
    nodes[1].input[0] = nodes[0].output[0]
    output = helper.make_tensor_value_info(nodes[1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [output])


def test_nodes_in_subgraphs_fold_where_they_stand() -> None:
    outer = chain(conv(), batch_norm(M))
    del outer.graph.node[:]
    outer.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    outer.graph.node.append(
        helper.make_node(
            "If", ["flag"], ["y"], name="if", then_branch=branch("a"), else_branch=branch("b")
        )
    )
    refused = fold(outer, prove=False)
    reasons = sorted(row.reason for row in refused.rows)
    assert "the weight of Conv 'a_n0' is shared with Conv 'b_n0'" in reasons[0]
    assert "the weight of Conv 'b_n0' is shared with Conv 'a_n0'" in reasons[1]
    result = fold(outer, clone=True)
    assert result
    assert [row.changed for row in result.rows] == [True, True]
    assert export.find_nodes(result.model) == []


def test_nodes_in_functions_fold_with_constants() -> None:
    inner = build(Case("inner", [conv(), batch_norm(M)], image(), source="Constant"))
    imports = [helper.make_opsetid("", 18)]
    function = helper.make_function("local", "Block", ["x"], ["y"], list(inner.graph.node), imports)
    graph = helper.make_graph(
        [helper.make_node("Block", ["x"], ["y"], domain="local")],
        "outer",
        list(inner.graph.input),
        list(inner.graph.output),
    )
    both = [*imports, helper.make_opsetid("local", 1)]
    outer = helper.make_model(graph, opset_imports=both, ir_version=10, functions=[function])
    result = fold(outer)
    assert result
    assert export.find_nodes(result.model) == []
    (body,) = result.model.functions.values()
    assert [node.op_type for node in body] == ["Constant", "Constant", "Conv"]


def test_external_data_stays_outside_and_folds(tmp_path: Path) -> None:
    before = chain(conv(), batch_norm(M))
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.ModelProto.FromString(before.SerializeToString()),
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    kept = (tmp_path / "weights").read_bytes()
    result = fold(path)
    assert result
    export.save(result.model, tmp_path / "folded.onnx")
    assert (tmp_path / "weights").read_bytes() == kept
    same_outputs(before, export.load(tmp_path / "folded.onnx"))


def test_statistics_in_float32_beside_16_bit_weights() -> None:
    case = Case("chain", [conv(), batch_norm(M)], image(), dtype="float16")
    before = build(case)
    for index in range(1, 5):
        stored = next(t for t in before.graph.initializer if t.name == f"1_{index}")
        wide = case.layers[1].constants[index].astype(np.float32)
        stored.CopyFrom(numpy_helper.from_array(wide, f"1_{index}"))
    result = fold(before, prove=False)
    weight = result.model.graph.initializers["0_1"].const_value
    assert weight.dtype == ir.DataType.FLOAT16
    same_outputs(before, result.model, bound=2**-10)


def test_a_dynamic_batch_folds() -> None:
    before = chain(conv(), batch_norm(M), Layer("Flatten", {}, {"axis": 1}))
    fixed = onnx.ModelProto.FromString(before.SerializeToString())
    before.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    result = fold(before, prove=False)
    assert operators(result.model) == ["Conv", "Flatten"]
    same_outputs(fixed, result.model)


def test_a_shared_bias_is_left_to_the_others() -> None:
    case = Case("chain", [conv(), batch_norm(M)], image())
    before = build(dataclasses.replace(case))
    before.graph.node.append(helper.make_node("Identity", ["0_2"], ["z"]))
    before.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    result = fold(before, prove=False)
    assert operators(result.model) == ["Conv", "Identity"]
    same_outputs(before, result.model)


def test_an_intermediate_value_that_a_later_fold_moves_is_not_compared() -> None:
    pool = Layer("AveragePool", {}, {"kernel_shape": [2, 2]})
    before = chain(conv(), batch_norm(M), pool, batch_norm(M, seed=6))
    result = fold(before)
    assert result
    assert [row.value for row in result.rows] == ["", "y"]
    assert folding_cases.should_fold(Case("one", [conv(), pool, batch_norm(M)], image()))
