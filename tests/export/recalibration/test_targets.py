"""Which nodes are re-estimated: names and patterns, shared parameters, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_models
import pytest
import recalibration_models as models
from onnx import helper

from cbn.export import ModelError, find_nodes
from cbn.export.recalibration.measure.targets import choose_targets

BN = onnx_models.batch_norm_node


def names(chosen):
    return [target.name for target in chosen.targets]


def test_all_nodes_in_graph_order_with_their_stored_statistics():
    chosen = choose_targets(models.two_layers())
    assert names(chosen) == ["bn_h", "bn_y"]
    first, second = chosen.targets
    parameters = models.parameters()
    assert (first.members, first.channels, first.dtype) == (("bn_h",), 3, np.dtype("float32"))
    assert first.eps == models.EPS
    for target, mean, var in ((first, "m", "v"), (second, "m2", "v2")):
        assert target.mean.dtype == target.var.dtype == np.float64
        assert (target.mean == parameters[mean]).all()
        assert (target.var == parameters[var]).all()
    assert chosen.refused == ()


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (["bn_y"], ["bn_y"]),
        ("bn_y", ["bn_y"]),
        (["bn_*"], ["bn_h", "bn_y"]),
        (["*_h", "bn_?"], ["bn_h", "bn_y"]),
        (["bn_[xyz]"], ["bn_y"]),
    ],
)
def test_names_and_patterns(nodes, expected):
    assert names(choose_targets(models.two_layers(), nodes)) == expected


def test_a_name_is_tried_before_a_pattern():
    model = models.two_layers()
    model.graph.node[0].name = "bn[0]"
    assert names(choose_targets(model, ["bn[0]"])) == ["bn[0]"]


def test_what_matches_nothing_is_an_error_that_names_what_there_is():
    with pytest.raises(ModelError, match="named or matches 'conv': there are 'bn_h', 'bn_y'"):
        choose_targets(models.two_layers(), ["bn_h", "conv"])
    with pytest.raises(ModelError, match="at least one name"):
        choose_targets(models.two_layers(), [])


def used_twice(arrays=None, second=("s", "b", "m", "v")):
    nodes = [BN("x", "h"), BN("h", "y", inputs=second)]
    return onnx_models.make_model(nodes, arrays=arrays)


def test_a_layer_used_twice_is_one_target():
    (target,) = choose_targets(used_twice()).targets
    assert (target.name, target.members) == ("bn_h", ("bn_h", "bn_y"))


def test_a_use_that_is_not_asked_for_is_left_out():
    (target,) = choose_targets(used_twice(), ["bn_y"]).targets
    assert (target.name, target.members) == ("bn_y", ("bn_y",))


def untouched(**more):
    arrays = onnx_models.parameters()
    blank = {"m": np.zeros(3, np.float32), "v": np.ones(3, np.float32)}
    return {**arrays, **blank, "s2": arrays["s"] + 1, **more}


def test_untrained_statistics_that_were_merged_for_their_looks_are_two_targets():
    model = used_twice(untouched(), ("s2", "b", "m", "v"))
    assert names(choose_targets(model)) == ["bn_h", "bn_y"]


def test_trained_statistics_that_are_shared_are_one_target_whatever_the_weights():
    arrays = untouched(m=np.full(3, 0.5, np.float32))
    assert names(choose_targets(used_twice(arrays, ("s2", "b", "m", "v")))) == ["bn_h"]


def branch(name):
    output = helper.make_tensor_value_info(name, 1, None)
    return helper.make_graph([BN("h", name)], name, [], [output])


def test_a_node_in_a_branch_is_refused_with_the_reason():
    choice = helper.make_node(
        "If", ["c"], ["y"], name="If_0", then_branch=branch("t"), else_branch=branch("e")
    )
    model = onnx_models.make_model([BN("x", "h"), choice], inputs=[onnx_models.flag("c")])
    chosen = choose_targets(model)
    assert names(chosen) == ["bn_h"]
    refused = dict(chosen.refused)
    assert refused.keys() == {"If_0.then_branch/bn_t", "If_0.else_branch/bn_e"}
    assert "inside If_0.then_branch" in refused["If_0.then_branch/bn_t"]


def per_activation():
    arrays = {name: np.ones((3, 4), np.float32) for name in "sbmv"}
    node = BN("x", "y", opset=7, spatial=0)
    return onnx_models.make_model([node], arrays=arrays, opset=7, shape=("N", 3, 4))


def fed_mean():
    arrays = onnx_models.parameters()
    del arrays["m"]
    mean = helper.make_tensor_value_info("m", 1, [3])
    return onnx_models.make_model([BN()], arrays=arrays, inputs=[mean])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (per_activation(), "statistics per activation"),
        (fed_mean(), "its mean is not fixed by the model: graph input"),
    ],
)
def test_when_none_is_left_the_reason_is_the_error(model, reason):
    with pytest.raises(ModelError, match=f"no BatchNormalization node can be .*{reason}"):
        choose_targets(model)


def test_functions_are_inlined_and_told():
    body = [helper.make_node("BatchNormalization", list("xsbmv"), ["y"], name="bn")]
    function = helper.make_function(
        "own", "Block", list("xsbmv"), ["y"], body, [helper.make_opsetid("", 15)]
    )
    call = helper.make_node("Block", list("xsbmv"), ["y"], domain="own", name="call")
    chosen = choose_targets(onnx_models.make_model([call], functions=[function]))
    (target,) = chosen.targets
    assert [norm.name for norm in find_nodes(chosen.model)] == [target.name]
    assert "inlined" in chosen.notes[0]


def test_an_old_opset_is_lifted():
    chosen = choose_targets(onnx_models.of_opset(6, is_test=1))
    assert chosen.model.opset_imports[""] == 7
    assert len(chosen.targets) == 1


def test_the_model_that_was_given_is_not_changed():
    model = models.two_layers()
    before = onnx.ModelProto()
    before.CopyFrom(model)
    choose_targets(model)
    assert model == before
