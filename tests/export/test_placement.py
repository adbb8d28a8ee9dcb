"""Nodes that run on the CPU unasked are found, and those that only compute shapes told apart."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import helper, numpy_helper
from pretended_cuda import CPU, CUDA

from cbn.export.files import load
from cbn.export.placement import Placed, fallen_back, refused_by_cuda, shape_nodes
from cbn.export.sessions import ProviderError, make_session, provider_in_use

make_node = helper.make_node


def flattening(names: bool = True) -> onnx.ModelProto:
    """y = Reshape(bn(x), [N, size / N]), the shape computed; every node named as its output."""
    nodes = [
        onnx_models.batch_norm_node(y="normal"),
        make_node("Shape", ["normal"], ["shape"]),
        make_node("Size", ["normal"], ["size"]),
        make_node("Gather", ["shape", "first"], ["rows"]),
        make_node("Div", ["size", "rows"], ["columns"]),
        make_node("Concat", ["rows", "columns"], ["target"], axis=0),
        make_node("Reshape", ["normal", "target"], ["flat"]),
        make_node("Div", ["flat", "two"], ["y"]),
    ]
    if names:
        for node in nodes:
            node.name = node.output[0]
    model = onnx_models.make_model(nodes)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0]), "first"),
            numpy_helper.from_array(np.array([2], np.float32), "two"),
        ]
    )
    return model


def placed_on_cpu(*nodes: tuple[str, str]) -> list[Placed]:
    return [Placed(CPU, name, op_type) for name, op_type in nodes]


def test_shape_nodes_compute_with_sizes_and_nothing_else():
    found = [node.name for node in shape_nodes(load(flattening()))]
    assert found == ["shape", "size", "rows", "columns", "target"]


def test_a_large_initializer_is_no_computation_of_shapes():
    nodes = [make_node("Shape", ["x"], ["s"]), make_node("Gather", ["table", "s"], ["y"])]
    model = onnx_models.make_model(nodes, arrays={"table": np.zeros(101, np.float32)})
    assert [node.op_type for node in shape_nodes(load(model))] == ["Shape"]


def test_shape_nodes_are_no_fallback():
    placed = placed_on_cpu(("shape", "Shape"), ("rows", "Gather"), ("target", "Concat"))
    assert fallen_back(load(flattening()), [*placed, Placed(CUDA, "normal", "X")]) == []


@pytest.mark.parametrize(
    ("name", "op_type"), [("normal", "BatchNormalization"), ("y", "Div"), ("flat", "Reshape")]
)
def test_other_nodes_are(name, op_type):
    (found,) = fallen_back(load(flattening()), placed_on_cpu((name, op_type), ("rows", "Gather")))
    assert (found.name, found.op_type) == (name, op_type)


def test_nodes_without_a_name_are_counted():
    model = load(flattening(names=False))
    assert fallen_back(model, placed_on_cpu(("", "Div"))) == []
    assert len(fallen_back(model, placed_on_cpu(("", "Div"), ("", "Div")))) == 1


def test_nodes_that_optimization_made_are_told_by_operator():
    model = load(flattening())
    assert fallen_back(model, placed_on_cpu(("made/1", "Div"), ("made/2", "Shape"))) == []
    assert len(fallen_back(model, placed_on_cpu(("made/3", "FusedConv")))) == 1


def test_nodes_in_subgraphs_are_seen():
    inner = helper.make_graph(
        [
            make_node("Shape", ["x"], ["s"], name="s"),
            make_node("Cast", ["s"], ["t"], name="t", to=onnx.TensorProto.FLOAT),
            make_node("ReduceSum", ["t"], ["out"], name="out"),
        ],
        "inner",
        [],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
    )
    choose = make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner)
    model = load(onnx_models.make_model([choose], inputs=[onnx_models.flag("c")]))
    assert [node.name for node in shape_nodes(model)] == ["s", "t", "out"] * 2
    assert fallen_back(model, placed_on_cpu(("t", "Cast"))) == []


def test_a_fallback_is_an_error_that_names_the_nodes(pretend):
    pretend(on_cpu={"normal"})
    with pytest.raises(ProviderError) as error:
        make_session(flattening(), "cuda", optimize=False)
    text = str(error.value)
    assert f"asked for {CUDA}" in text
    assert "runs 1 of 8 nodes on the CPU instead: BatchNormalization 'normal'." in text
    assert '"auto"' in text


@pytest.mark.parametrize("providers", ["auto", [CUDA, CPU]])
def test_a_fallback_that_was_asked_for_is_none(pretend, providers):
    pretend(on_cpu={"normal"})
    session = make_session(flattening(), providers, optimize=False)
    assert provider_in_use(session, "BatchNormalization") == CPU
    assert provider_in_use(session) == f"{CPU}+{CUDA}"


def test_shapes_may_be_computed_on_the_cpu(pretend):
    pretend(on_cpu={"shape", "size", "rows", "columns", "target"})
    session = make_session(flattening(), "cuda", optimize=False)
    assert provider_in_use(session, "BatchNormalization") == CUDA


def test_a_model_of_shapes_alone_may_run_on_the_cpu_alone(pretend):
    pretend(on_cpu={"Shape"})
    node = make_node("Shape", ["x"], ["y"])
    model = onnx_models.make_model([node], output_types={"y": onnx.TensorProto.INT64})
    assert make_session(model, "cuda", optimize=False).get_providers() == [CUDA, CPU]


def test_many_nodes_are_not_all_named(pretend):
    nodes = [make_node("Relu", ["x"], ["y0"], name="relu0")]
    nodes += [make_node("Relu", [f"y{i}"], [f"y{i + 1}"], name=f"relu{i + 1}") for i in range(7)]
    nodes.append(make_node("Neg", ["y7"], ["y"], name="last"))
    pretend(on_cpu={"Relu"})
    with pytest.raises(ProviderError, match=r"runs 8 of 9 nodes.*'relu4' and 3 more"):
        make_session(onnx_models.make_model(nodes), "cuda", optimize=False)


@pytest.mark.parametrize(("opset", "refused"), [(9, []), (13, []), (14, ["bn_y"]), (18, ["bn_y"])])
def test_cuda_refuses_training_mode_from_opset_14_on(opset, refused):
    model = onnx_models.single(training=True, opset=opset, outputs=("y", "y_mean", "y_var"))
    assert refused_by_cuda(load(model)) == refused
    assert refused_by_cuda(load(onnx_models.single(opset=opset))) == []
