"""Every BatchNormalization node is found, wherever it is, and read by its opset's rules."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import TensorProto, helper

from cbn.export.files import ModelError, load
from cbn.export.nodes import BatchNormNode, find_nodes


def only(proto: onnx.ModelProto) -> BatchNormNode:
    (node,) = find_nodes(proto)
    return node


def test_what_a_node_says() -> None:
    proto = onnx_models.of_opset(15, epsilon=0.5, momentum=0.25, name="bn")
    node = only(proto)
    assert (node.name, node.path, node.opset, node.version.since) == ("bn", (), 15, 15)
    assert (node.mode, node.eps, node.momentum, node.spatial) == ("eval", 0.5, 0.25, True)
    assert (node.rank, node.input_shape, node.dtype) == (4, ("N", 3, "H", "W"), ir.DataType.FLOAT)
    assert node.num_features == 3
    for name, array in zip(
        ("scale", "bias", "mean", "var"), onnx_models.named_parameters().values(), strict=True
    ):
        assert node.parameters[name].source == "initializer"
        np.testing.assert_array_equal(node.parameters[name].array, array)


def test_what_a_node_leaves_out_is_the_operator_s_default() -> None:
    node = only(onnx_models.of_opset(15))
    assert (node.eps, node.momentum) == (float(np.float32(1e-5)), float(np.float32(0.9)))


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes", "mode"),
    [
        (1, ["y"], {"is_test": 1}, "eval"),
        (1, ["y"], {}, "training"),
        (6, ["y"], {"is_test": 1}, "eval"),
        (6, ["y"], {}, "training"),
        (7, ["y"], {}, "eval"),
        (7, ["y", "m", "v", "sm", "sv"], {}, "training"),
        (9, ["y", "", "", "", ""], {}, "eval"),
        (9, ["y", "", "", "sm"], {}, "training"),
        (13, ["y", "m", "v", "sm", "sv"], {}, "training"),
        (14, ["y"], {}, "eval"),
        (14, ["y", "m", "v"], {"training_mode": 1}, "training"),
        (15, ["y"], {"training_mode": 1}, "training"),
    ],
)
def test_the_mode_by_the_opset_s_own_rule(
    opset: int, outputs: list[str], attributes: dict[str, int], mode: str
) -> None:
    assert only(onnx_models.of_opset(opset, outputs, **attributes)).mode == mode


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
def test_spatial_exists_up_to_opset_8(opset: int) -> None:
    assert not only(onnx_models.of_opset(opset, spatial=0)).spatial
    assert only(onnx_models.of_opset(opset)).spatial


def test_the_default_domain_has_two_names() -> None:
    proto = onnx_models.of_opset(13)
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    assert only(proto).opset == 13


def test_other_domains_and_operators_are_not_batch_norms() -> None:
    proto = onnx_models.of_opset()
    proto.graph.node[0].domain = "com.example"
    assert find_nodes(proto) == []
    assert find_nodes(onnx_models.plain_model([helper.make_node("Relu", ["x"], ["y"])], {})) == []


def test_names_are_unique_and_the_same_on_every_reading() -> None:
    nodes = [
        onnx_models.plain_node(["a"], name="bn"),
        onnx_models.plain_node(["b"], x="a", name="bn"),
        onnx_models.plain_node(["y"], x="b"),
    ]
    proto = onnx_models.plain_model(nodes)
    assert [node.name for node in find_nodes(proto)] == ["bn", "bn#2", "y"]
    assert [node.name for node in find_nodes(load(proto))] == ["bn", "bn#2", "y"]


def branch(name: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
    return helper.make_graph([onnx_models.plain_node([f"{name}_y"], name="bn")], name, [], [output])


def test_nodes_of_subgraphs_carry_their_path() -> None:
    choice = helper.make_node(
        "If", ["yes"], ["y"], name="If_0", then_branch=branch("then"), else_branch=branch("else")
    )
    stored = {**onnx_models.named_parameters(), "yes": np.array(True)}
    nodes = find_nodes(onnx_models.plain_model([choice], stored))
    paths = {"If_0.then_branch", "If_0.else_branch"}
    assert {node.name for node in nodes} == {f"{path}/bn" for path in paths}
    assert {node.path for node in nodes} == {(path,) for path in paths}
    # Names of the outer graph are seen from within.
    assert all(node.scale.known and node.rank == 4 for node in nodes)


def function_model(attribute: onnx.AttributeProto | None = None) -> onnx.ModelProto:
    inner = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], name="bn")
    names: list[str] = []
    if attribute is not None:
        inner.attribute.append(attribute)
        names.append(attribute.ref_attr_name)
    block = helper.make_function(
        "local",
        "Block",
        ["x", "s", "b", "m", "v"],
        ["y"],
        [inner],
        [helper.make_opsetid("", 13)],
        attributes=names,
    )
    call = helper.make_node("Block", ["x", *onnx_models.PARAMETERS], ["y"], domain="local")
    proto = onnx_models.plain_model([call], opset=15, functions=[block])
    proto.opset_import.append(helper.make_opsetid("local", 1))
    return proto


def test_nodes_of_functions_follow_the_function_s_own_opset() -> None:
    node = only(function_model())
    assert (node.name, node.path, node.opset) == ("function Block/bn", ("function Block",), 13)
    assert node.scale.source == "graph input"


def test_an_attribute_that_the_caller_of_a_function_sets() -> None:
    attribute = onnx.AttributeProto(
        name="epsilon", type=onnx.AttributeProto.FLOAT, ref_attr_name="eps"
    )
    node = only(function_model(attribute))
    assert node.by_reference == ("epsilon",)
    assert node.eps == float(np.float32(1e-5))


def test_the_shape_is_inferred_where_it_is_not_stated() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[2, 2]),
        onnx_models.plain_node(x="h"),
    ]
    stored = {**onnx_models.named_parameters(), "w": weight}
    proto = onnx_models.plain_model(nodes, stored, shape=("batch", 2, 9, 9))
    opened = load(proto)
    (node,) = find_nodes(opened)
    assert (node.input_shape, node.dtype) == (("batch", 3, 4, 4), ir.DataType.FLOAT)
    assert opened.graph[1].inputs[0].shape is None, "the given model was changed"


def test_a_size_of_minus_one_is_open() -> None:
    assert only(
        onnx_models.plain_model([onnx_models.plain_node()], shape=(-1, 3, 4, 4))
    ).input_shape == (
        None,
        3,
        4,
        4,
    )


def test_a_rank_that_nothing_tells() -> None:
    reshape = helper.make_node("Reshape", ["x", "s"], ["h"])
    proto = onnx_models.plain_model([reshape, onnx_models.plain_node(x="h")])
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, ["r"]))
    node = only(proto)
    assert (node.rank, node.input_shape, node.num_features) == (None, None, 3)


def test_a_model_without_an_opset_for_the_node() -> None:
    proto = onnx_models.of_opset()
    proto.opset_import[0].domain = "com.example"
    with pytest.raises(ModelError, match="imports no ONNX opset"):
        find_nodes(proto)


def test_a_node_with_missing_inputs() -> None:
    proto = onnx_models.of_opset()
    del proto.graph.node[0].input[3:]
    node = only(proto)
    assert [c.source for c in node.parameters.values()] == ["initializer"] * 2 + ["missing"] * 2
    del proto.graph.node[0].input[:]
    with pytest.raises(ModelError, match="has no input"):
        find_nodes(proto)


def test_an_attribute_of_another_type() -> None:
    proto = onnx_models.of_opset()
    proto.graph.node[0].attribute.append(helper.make_attribute("epsilon", "small"))
    with pytest.raises(ModelError, match="attribute epsilon of type FLOAT, got STRING"):
        find_nodes(proto)


def test_channels_that_cannot_be_normalized_and_statistics_never_trained():
    def node(**given):
        arrays = onnx_models.parameters() | {k: np.array(v, "f4") for k, v in given.items()}
        return find_nodes(onnx_models.single(arrays=arrays))[0]

    assert node(v=[1, -1e-5, np.nan]).bad_channels.tolist() == [False, True, False]
    assert not node().bad_channels.any()
    assert node(m=[0, 0, 0], v=[1, 1, 1]).untouched
    assert not node(m=[0, 0, 0]).untouched
