"""A node that stays says why, in words that a reader can check against the model."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from folding_cases import BATCH, Case, Layer, array, batch_norm, build, ints
from folding_matrix import C, M, conv, image
from onnx import TensorProto, helper, numpy_helper

from cbn.export.files import ModelError
from cbn.export.folding import fold
from cbn.export.rewrite import RewriteRow


def only_row(model: onnx.ModelProto, **options: object) -> RewriteRow:
    result = fold(model, prove=False, **options)
    (row,) = result.rows
    return row


def chain(*layers: Layer, shape: tuple[int, ...] = image(), **more: object) -> onnx.ModelProto:
    return build(Case("chain", layers, shape, **more))


def behind_conv() -> onnx.ModelProto:
    return chain(conv(), batch_norm(M))


def set_initializer(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    stored = next(t for t in model.graph.initializer if t.name == name)
    stored.CopyFrom(numpy_helper.from_array(array, name))


def set_attribute(model: onnx.ModelProto, node: int, name: str, value: object) -> None:
    model.graph.node[node].attribute.append(helper.make_attribute(name, value))


def stays(model: onnx.ModelProto, *words: str, **options: object) -> None:
    row = only_row(model, **options)
    assert row.action == "kept"
    assert row.ok
    for word in words:
        assert word in row.reason


CHAINS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "relu before": (
        lambda: chain(conv(), Layer("Relu"), batch_norm(M)),
        ("before: Relu 'n1' stands between", "behind: 'y' is an output of the graph"),
    ),
    "sigmoid before": (
        lambda: chain(conv(), Layer("Sigmoid"), batch_norm(M)),
        ("its input comes from Sigmoid 'n1', which takes no scale and shift in",),
    ),
    "tanh behind": (
        lambda: chain(batch_norm(C), Layer("Tanh"), conv()),
        ("'x' before it is an input of the graph", "its output goes to Tanh 'n1'"),
    ),
    "zero padding": (
        lambda: chain(batch_norm(C), conv(pads=1)),
        ("its shift is not 0, and Conv 'n1' pads with zeros",),
    ),
    "negative scales": (
        lambda: chain(conv(), Layer("GlobalMaxPool"), batch_norm(M)),
        ("GlobalMaxPool 'n1' stands between, and 2 of its scales are negative",),
    ),
    "padding counted": (
        lambda: chain(
            conv(),
            Layer(
                "AveragePool",
                {},
                {"kernel_shape": [2, 2], "pads": [1] * 4, "count_include_pad": 1},
            ),
            batch_norm(M),
        ),
        ("AveragePool 'n1' counts padding zeros",),
    ),
    "border": (
        lambda: chain(conv(), Layer("Pad", {1: ints(0, 0, 1, 1, 0, 0, 1, 1)}), batch_norm(M)),
        ("Pad 'n1' stands between: its border would need another value in each channel",),
    ),
    "channels of another axis": (
        lambda: chain(Layer("MatMul", {1: array(3, 3)}), batch_norm(4), shape=(BATCH, 4, 3)),
        ("its channels lie along axis 1 of what MatMul 'n0' gives, not 2",),
    ),
    "spatial=0": (
        lambda: chain(conv(), batch_norm(M, spatial=0), opset=8),
        ("statistics per activation (spatial=0)",),
    ),
    "a constant with more channels, before": (
        lambda: chain(Layer("Sub", {1: array(3, 1, 1)}), batch_norm(3), shape=(BATCH, 1, 4, 4)),
        ("the constant of Sub 'n0' may be larger than what it meets",),
    ),
    "a constant with more dimensions, before": (
        lambda: chain(Layer("Mul", {1: array(1, 3, 1, 1)}), batch_norm(3), shape=(3, 4)),
        ("the constant of Mul 'n0' may be larger than what it meets",),
    ),
    "a constant that adds a dimension on the way": (
        lambda: chain(
            Layer("MatMul", {1: array(4, 3)}),
            Layer("Add", {1: array(1, 1, 3)}),
            Layer("Transpose", {}, {"perm": [0, 2, 1]}),
            batch_norm(3),
            shape=(5, 4),
        ),
        ("the constant of Add 'n1' may be larger than what it meets",),
    ),
    "a constant that widens a Conv's image": (
        lambda: chain(
            Layer("Conv", {1: array(1, C, 1, 1)}, {"kernel_shape": [1, 1]}),
            Layer("Mul", {1: array(1, 2, 4)}),
            batch_norm(1),
            shape=(BATCH, C, 1, 4),
        ),
        ("the constant of Mul 'n1' may be larger than what it meets",),
    ),
    "channels squeezed away": (
        lambda: chain(
            Layer(
                "BatchNormalization",
                {1: np.full(4, 2.0), 2: np.full(4, 0.5), 3: np.full(4, 0.25), 4: np.ones(4)},
            ),
            Layer("Squeeze", {1: ints(0)}),
            Layer("MatMul", {0: array(3, 4)}, computed=1),
            shape=(1, 4),
        ),
        ("what MatMul 'n2' reads has 1 dimension, so no axis -2",),
    ),
    "one number an element": (
        lambda: chain(batch_norm(C), Layer("Mul", {1: array(1, C, 1, 3)}), Layer("Relu")),
        ("Relu 'n2' stands between",),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_says_what_stands_in_the_way(name: str) -> None:
    make, words = CHAINS[name]
    stays(make(), *words)


@pytest.mark.parametrize(
    ("initializer", "value", "words"),
    [
        ("0_1", np.nan, "NaN in the weight of Conv 'n0'"),
        ("0_2", np.inf, "infinity in the bias of Conv 'n0'"),
        ("1_1", np.nan, "NaN in its scale"),
        ("1_4", -np.inf, "infinity in its var"),
        ("1_4", -2.0, "var + epsilon is 0 or less in 4 of its channels"),
    ],
)
def test_says_which_number_is_wrong(initializer: str, value: float, words: str) -> None:
    model = behind_conv()
    stored = next(t for t in model.graph.initializer if t.name == initializer)
    set_initializer(model, initializer, np.full(stored.dims, value, np.float32))
    stays(model, words)


def test_training_mode_is_refused() -> None:
    model = behind_conv()
    set_attribute(model, 1, "training_mode", 1)
    model.graph.node[1].output.extend(["running_mean", "running_var"])
    stays(model, "training mode", "freeze it")


def test_a_computed_parameter_is_refused() -> None:
    model = behind_conv()
    model.graph.node.insert(0, helper.make_node("Relu", ["0_1"], ["computed"], name="r"))
    model.graph.node[1].input[1] = "computed"
    stays(model, "the weight of Conv 'n0' is no constant: computed by Relu")


def test_a_parameter_that_the_caller_feeds_is_refused() -> None:
    stays(chain(conv(), batch_norm(M), source="input"), "its scale is a graph input with a default")


def test_an_operator_of_another_domain_is_refused() -> None:
    model = behind_conv()
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    stays(model, "Conv 'n0' is of the domain 'com.example'")


def test_a_weight_that_overflows_its_type_is_refused() -> None:
    norm = batch_norm(M)
    loud = dataclasses.replace(norm, constants={**norm.constants, 1: np.full(M, 6e4)})
    stays(chain(conv(), loud, dtype="float16"), "would reach", "beyond float16's 6.55e+04")


def test_a_weight_that_vanishes_in_its_type_is_refused() -> None:
    norm = batch_norm(M)
    quiet = dataclasses.replace(norm, constants={**norm.constants, 1: np.full(M, 2e-7)})
    stays(chain(conv(), quiet, dtype="float16"), "below float16's smallest normal number")


@pytest.mark.parametrize("who", ["an output", "a second reader", "a shared weight"])
def test_what_others_need_is_named_and_so_is_the_way_out(who: str) -> None:
    words = {
        "an output": "the output of Conv 'n0' is also an output of the graph (clone copies it)",
        "a second reader": "the output of Conv 'n0' is also read by Identity 'reader'",
        "a shared weight": "the weight of Conv 'n0' is shared with Identity 'reader' (clone",
    }
    stays(chain(conv(), batch_norm(M), readers=who), words[who])


def test_a_result_that_nothing_reads() -> None:
    model = chain(batch_norm(C), conv())
    model.graph.node[1].input[0] = "x"
    stays(model, "nothing reads the content of 'v0'")


def test_two_computed_terms() -> None:
    model = chain(Layer("Add", {1: array(1)}), batch_norm(C))
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["other"]))
    model.graph.node[1].input[1] = "other"
    stays(model, "Add 'n0' stands between and combines it with what is computed by Relu")


def test_a_node_that_was_asked_for_and_stays_makes_the_result_false() -> None:
    model = chain(conv(), Layer("Sigmoid"), batch_norm(M))
    assert fold(model, prove=False)
    assert not fold(model, nodes=["n2"], prove=False)


def test_nodes_that_were_not_asked_for_stay() -> None:
    result = fold(behind_conv(), nodes=[], prove=False)
    assert result
    assert [row.reason for row in result.rows] == ["not asked for"]


def test_a_node_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ModelError, match="no BatchNormalization node is named 'n7': it has 'n1'"):
        fold(behind_conv(), nodes=["n7"], prove=False)


def test_a_quantized_weight_is_refused() -> None:
    model = behind_conv()
    stored = [
        numpy_helper.from_array(np.ones((M, C, 2, 2), np.uint8), "q"),
        numpy_helper.from_array(np.array(0.1, np.float32), "q_scale"),
    ]
    model.graph.initializer.extend(stored)
    node = helper.make_node("DequantizeLinear", ["q", "q_scale"], ["dequantized"])
    model.graph.node.insert(0, node)
    model.graph.node[1].input[1] = "dequantized"
    stays(model, "the weight of Conv 'n0' is no constant: computed by DequantizeLinear")


def test_a_weight_too_large_to_hold_is_refused() -> None:
    model = behind_conv()
    del model.graph.initializer[0]
    model.graph.initializer.append(numpy_helper.from_array(ints(M, C, 2**14, 2**11), "shape"))
    fill = helper.make_tensor("fill", TensorProto.FLOAT, [1], [1.0])
    node = helper.make_node("ConstantOfShape", ["shape"], ["0_1"], value=fill)
    model.graph.node.insert(0, node)
    stays(model, "the weight of Conv 'n0' has 268435456 values")


def test_a_map_too_large_to_hold_is_refused() -> None:
    chained = chain(
        batch_norm(2),
        Layer("Flatten"),
        Layer("Gemm", {1: array(1, 1)}),
        shape=(1, 2, 8192, 8191),
    )
    tracemalloc.start()
    try:
        stays(chained, "would have to be held as arrays of shape [1, 2, 8192, 8191]")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_model_without_batch_norms_is_an_error() -> None:
    model = behind_conv()
    del model.graph.node[1]
    model.graph.node[0].output[0] = "y"
    with pytest.raises(ModelError, match="the model has no BatchNormalization node: nothing to do"):
        fold(model)


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_an_old_opset_is_lifted_for_the_proof_and_else_stays(opset: int) -> None:
    model = chain(conv(), batch_norm(M), opset=opset)
    result = fold(model)
    assert result, result
    assert result.proof is not None
    assert result.model.opset_imports[""] == 7
    assert "lifted to opset 7" in result.notes[0]
    assert result.rows[0].action == "folded into Conv 'n0'"
    unproved = fold(model, prove=False)
    assert unproved.rows[0].action == "folded into Conv 'n0'"
    assert unproved.model.opset_imports[""] == opset
