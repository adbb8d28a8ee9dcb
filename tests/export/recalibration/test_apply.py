"""Statistics into a copy of a model: rounded once, weights shared, no other node touched."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_models
import pytest
import recalibration_models as models
from onnx import helper, numpy_helper

from cbn.export import ModelError, find_nodes
from cbn.export.recalibration.apply import apply_statistics
from cbn.export.recalibration.measure.targets import choose_targets

BN = onnx_models.batch_norm_node
MEAN, VAR = np.array([0.1, -2.0, 3.0]), np.array([0.5, 1 / 3, 0.0])


def stored(model):
    """Mean and variance of each node, as any reader finds them."""
    return {norm.name: (norm.mean.array, norm.var.array) for norm in find_nodes(model)}


def applied(model, nodes=None, pair=(MEAN, VAR)):
    chosen = choose_targets(model, nodes)
    return apply_statistics(chosen, {target.name: pair for target in chosen.targets})


def bytes_of(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_they_are_rounded_once_to_the_stored_type(dtype):
    after = applied(models.two_layers(dtype=dtype))
    for mean, var in stored(after).values():
        assert mean.dtype == var.dtype == np.dtype(dtype)
        assert (mean == MEAN.astype(dtype)).all()
        assert (var == VAR.astype(dtype)).all()


def test_nothing_else_changes():
    before = models.two_layers()
    after = ir.to_proto(applied(before, ["bn_h"]))
    assert list(after.graph.node) == list(before.graph.node)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    expected = {**models.parameters(), "m": MEAN.astype("f"), "v": VAR.astype("f")}
    assert arrays.keys() == expected.keys()
    assert all((arrays[name] == expected[name]).all() for name in arrays)


def test_the_model_before_stays_and_shares_its_weights():
    chosen = choose_targets(models.two_layers())
    before = bytes_of(chosen.model)
    after = apply_statistics(chosen, {"bn_h": (MEAN, VAR)})
    assert bytes_of(chosen.model) == before
    one, two = (model.graph.initializers["w"].const_value for model in (chosen.model, after))
    assert one is two


def test_targets_that_are_not_named_keep_what_they_have():
    chosen = choose_targets(models.two_layers())
    after = stored(apply_statistics(chosen, {"bn_y": (MEAN, VAR)}))
    assert (after["bn_h"][0] == models.parameters()["m"]).all()
    assert (after["bn_y"][0] == MEAN.astype("f")).all()


def test_a_shared_layer_stays_shared():
    model = onnx_models.make_model([BN("x", "h"), BN("h", "y")])
    after = applied(model)
    assert set(after.graph.initializers) == {"s", "b", "m", "v"}
    assert (after.graph.initializers["m"].const_value.numpy() == MEAN.astype("f")).all()


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(("s", "b", "m", "v"), id="shared with a node not asked for"),
        pytest.param(("v", "m", "m2", "v2"), id="scale and bias of another node"),
    ],
)
def test_a_value_that_serves_another_node_is_not_written_to(inputs):
    nodes = [BN("x", "h"), BN("h", "y", inputs=inputs)]
    before = onnx_models.make_model(nodes, arrays=models.parameters())
    after = applied(before, ["bn_h"])
    assert (stored(after)["bn_h"][0] == MEAN.astype("f")).all()
    one, two = ({n.name: n.parameters for n in find_nodes(m)}["bn_y"] for m in (before, after))
    assert all((one[name].array == two[name].array).all() for name in one)


def test_one_value_for_mean_and_scale_is_told_apart():
    model = onnx_models.make_model([BN(inputs=("m", "b", "m", "v"))])
    (norm,) = find_nodes(applied(model))
    assert (norm.mean.array == MEAN.astype("f")).all()
    assert (norm.scale.array == onnx_models.parameters()["m"]).all()


def test_what_a_constant_node_held_goes_with_it():
    arrays = onnx_models.parameters()
    constant = helper.make_node("Constant", [], ["m"], value=numpy_helper.from_array(arrays["m"]))
    arrays.pop("m")
    after = applied(onnx_models.make_model([constant, BN()], arrays=arrays))
    assert [node.op_type for node in after.graph] == ["BatchNormalization"]
    assert (stored(after)["bn_y"][0] == MEAN.astype("f")).all()


def test_before_ir_version_4_new_initializers_are_inputs_too():
    nodes = [BN("x", "h", opset=8), BN("h", "y", opset=8)]
    before = onnx_models.make_model(nodes, opset=8)
    before.ir_version = 3
    for tensor in before.graph.initializer:
        before.graph.input.add().CopyFrom(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    after = applied(before, ["bn_y"])
    assert set(after.graph.initializers) <= {value.name for value in after.graph.inputs}
    assert (stored(after)["bn_y"][0] == MEAN.astype("f")).all()
    assert (stored(after)["bn_h"][0] == onnx_models.parameters()["m"]).all()


@pytest.mark.parametrize("opset", [7, 13, 15])
def test_nodes_in_training_mode_become_eval_mode_and_compute_with_the_new_statistics(opset):
    after = applied(models.two_layers(opset=opset, training=True), pair=(MEAN, VAR + 1))
    assert {norm.mode for norm in find_nodes(after)} == {"eval"}
    x = models.images(4)
    y = onnx_models.run(ir.to_proto(after), x)["y"]
    p, seen = models.parameters(), models.Seen(MEAN.astype("f"), (VAR + 1).astype("f"))
    inner = models.mixed(models.normalized(x, seen, p["s"], p["b"]), p["w"])
    expected = models.normalized(inner, seen, p["s2"], p["b2"])
    assert np.abs(y - expected).max() < 1e-5


def test_what_does_not_fit_is_refused():
    chosen = choose_targets(models.two_layers(dtype="float16"))

    def refused(match, **pairs):
        with pytest.raises(ModelError, match=match):
            apply_statistics(chosen, pairs)

    refused("no target 'conv': there are bn_h, bn_y", conv=(MEAN, VAR))
    refused(r"'bn_h': expected mean of shape \(3,\), got \(2,\)", bn_h=(MEAN[:2], VAR))
    refused("'bn_h': expected var that float16 can hold", bn_h=(MEAN, VAR + 1e6))
    refused("'bn_y': expected mean that float16 can hold", bn_y=(MEAN * np.nan, VAR))
    refused("'bn_h': expected var of 0 or more, got -1", bn_h=(MEAN, VAR - 1))
