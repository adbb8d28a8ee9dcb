"""The fingerprint of a model: the same whatever its running statistics, and no other model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import batch_norm_node, make_model, parameters, single

from cbn import export
from cbn.export.recalibration.bank.fingerprint import fingerprint

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def two(**changed: np.ndarray) -> onnx.ModelProto:
    """Two batch norms with a MatMul between them; `changed` arrays are added or replaced."""
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    arrays = {**parameters(), "w": weight, "o": np.ones((2, 2), np.float32), **changed}
    nodes = [
        batch_norm_node("x", "h"),
        helper.make_node("MatMul", ["h", "w"], ["g"]),
        helper.make_node("Relu", ["g"], ["r"]),
        batch_norm_node("r", "t"),
        helper.make_node("Mul", ["t", "two"], ["y"]),
    ]
    arrays.setdefault("two", np.float32(2))
    return make_model(nodes, arrays=arrays)


def test_running_statistics_and_mode_do_not_count():
    other = {**parameters(), "m": np.zeros(3, np.float32), "v": np.full(3, 9, np.float32)}
    marks = [single(), single(arrays=other), single(training=True)]
    assert len({fingerprint(model).digest for model in marks}) == 1


def test_exported_in_training_mode_or_in_eval_mode_and_frozen():
    mark = fingerprint(DIGITS / "digits.onnx")
    training = DIGITS / "digits_training.onnx"
    assert fingerprint(training) == mark
    assert fingerprint(export.freeze(training, prove=False).model) == mark


def test_running_statistics_as_outputs_do_not_count():
    nodes = [batch_norm_node(training=True)]
    model = make_model(nodes, outputs=("y", "y_mean", "y_var"))
    frozen = export.freeze(model, prove=False).model
    assert len(frozen.graph.outputs) == 3
    assert fingerprint(frozen) == fingerprint(model)
    assert fingerprint(model).digest == fingerprint(single()).digest


def test_names_inside_do_not_count():
    model = two()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in "hgrt":
                    names[index] = f"renamed_{name}"
    assert fingerprint(model) == fingerprint(two())


def test_the_order_of_nodes_does_not_count():
    nodes = [helper.make_node("Abs", ["x"], ["p"]), helper.make_node("Neg", ["x"], ["q"])]
    last = helper.make_node("Sub", ["p", "q"], ["y"])
    one, two = make_model([*nodes, last]), make_model([*nodes[::-1], last])
    assert fingerprint(one) == fingerprint(two)
    swapped = make_model([*nodes, helper.make_node("Sub", ["q", "p"], ["y"])])
    assert fingerprint(one).digest != fingerprint(swapped).digest


def test_what_no_output_needs_does_not_count():
    model = two()
    model.graph.node.append(helper.make_node("Abs", ["x"], ["nobody"]))
    assert fingerprint(model).digest == fingerprint(two()).digest


@pytest.mark.parametrize("name", ["s", "b", "w", "two"])
def test_every_weight_counts(name):
    stored = {item.name: numpy_helper.to_array(item) for item in two().graph.initializer}
    assert fingerprint(two(**{name: stored[name] + 1})).digest != fingerprint(two()).digest


def test_attributes_and_epsilon_count():
    digests = {
        fingerprint(make_model([batch_norm_node(**given)])).digest
        for given in ({}, {"epsilon": 1e-3}, {"momentum": 0.5})
    }
    assert len(digests) == 2  # momentum is of training alone
    pools = [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=alpha) for alpha in (0.1, 0.2)]
    assert len({fingerprint(make_model([node])).digest for node in pools}) == 2


def test_bodies_count():
    def model(operator: str) -> onnx.ModelProto:
        bodies = {
            f"{branch}_branch": helper.make_graph(
                [helper.make_node(operator, ["x"], [f"{branch}_y"])],
                branch,
                [],
                [helper.make_tensor_value_info(f"{branch}_y", onnx.TensorProto.FLOAT, None)],
            )
            for branch in ("then", "else")
        }
        flag = helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
        return make_model([helper.make_node("If", ["flag"], ["y"], **bodies)], inputs=[flag])

    assert fingerprint(model("Abs")) == fingerprint(model("Abs"))
    assert fingerprint(model("Abs")).digest != fingerprint(model("Neg")).digest


def test_models_of_the_onnx_package_are_all_different():
    paths = [LIGHT / f"light_{name}.onnx" for name in ("resnet50", "squeezenet", "zfnet512")]
    assert len({fingerprint(path).digest for path in paths}) == 3


def test_it_says_where_two_models_part():
    mark = fingerprint(two())
    assert mark.difference(fingerprint(two(m=np.zeros(3, np.float32)))) is None
    other = make_model([batch_norm_node(y="z")], outputs=("z",))
    lost = fingerprint(single()).difference(fingerprint(other))
    assert lost == "it has no node 'bn_y'"
    weight = np.zeros((3, 3), np.float32)
    assert mark.difference(fingerprint(two(w=weight))) == (
        "operators or weights in or before its node 'bn_t' differ (1 of 2 nodes are alike)"
    )
    behind = mark.difference(fingerprint(two(two=np.float32(3))))
    assert behind == "its nodes are alike, and what follows them differs"
    wide = make_model([batch_norm_node()], arrays=parameters(4), shape=("N", 4, "L"))
    found = fingerprint(single()).difference(fingerprint(wide))
    assert found == "its node 'bn_y' has 4 channels in place of 3"
