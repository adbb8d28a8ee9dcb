"""Freezing: the policy decides the statistics, and nothing is flipped in silence."""

from __future__ import annotations

import importlib.util
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
from cbn.export.freeze import freeze
from cbn.export.nodes import find_nodes
from cbn.export.sessions import make_session, run_session

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
X = np.random.default_rng(5).normal(3, 2, (4, 3, 6)).astype(np.float32)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run_session(make_session(model, optimize=False), feeds)


def test_the_digits_network_in_training_mode_becomes_the_one_in_eval_mode() -> None:
    result = freeze(FOLDER / "digits_training.onnx", data=FOLDER / "digits.npz")
    assert result, result
    assert all(row.action == "frozen with stored statistics" for row in result.rows)
    assert {norm.mode for norm in find_nodes(result.model)} == {"eval"}
    with np.load(FOLDER / "digits.npz") as data:
        images, labels = data["image"], data["label"]
    logits = run(result.model, {"image": images})["logits"]
    exported = run(export.load(FOLDER / "digits.onnx"), {"image": images})["logits"]
    assert np.abs(logits - exported).max() <= 4 * np.spacing(np.abs(exported).max())
    assert (logits.argmax(1) == labels).mean() >= 0.98


def test_it_agrees_with_eval_mode_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="the comparison needs PyTorch")
    pytest.importorskip("sklearn", reason="the training script needs scikit-learn")
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("digits_train", FOLDER / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    net = train.Net()
    net.load_state_dict(load_file(FOLDER / "digits.safetensors"))
    with np.load(FOLDER / "digits.npz") as data:
        images = data["image"]
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(images)).numpy()
    frozen = freeze(FOLDER / "digits_training.onnx", prove=False).model
    for model in (frozen, export.fold(frozen).model, export.lower(frozen, affine=True).model):
        logits = run(model, {"image": images})["logits"]
        # float32 sums over up to 288 terms, in another order: errors add as ULP of the largest.
        assert np.abs(logits - expected).max() <= 16 * np.spacing(np.abs(expected).max())


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 18])
def test_every_way_to_say_training_mode(opset: int) -> None:
    result = freeze(onnx_models.single(training=True, opset=opset))
    assert result, result
    (norm,) = find_nodes(result.model)
    assert norm.mode == "eval"
    assert len(norm.node.outputs) == 1
    stored = onnx_models.parameters()
    expected = cbn.batch_norm(X, stored["m"], stored["v"], stored["s"], stored["b"])
    assert np.abs(run(result.model, {"x": X})["y"] - expected).max() < 1e-5


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_old_opsets_are_lifted(opset: int) -> None:
    model = onnx_models.single(training=True, opset=opset)
    if opset < 6:
        model.graph.node[0].attribute.append(
            helper.make_attribute("consumed_inputs", [0, 0, 0, 1, 1])
        )
    result = freeze(model)
    assert result, result
    assert result.proof is not None
    assert "lifted to opset 7" in result.notes[0]
    (norm,) = find_nodes(result.model)
    assert (norm.mode, norm.opset) == ("eval", 7)
    stored = onnx_models.parameters()
    expected = cbn.batch_norm(X, stored["m"], stored["v"], stored["s"], stored["b"])
    assert np.abs(run(result.model, {"x": X})["y"] - expected).max() < 1e-5


def test_it_says_how_far_the_outputs_move() -> None:
    result = freeze(onnx_models.single(training=True), data={"x": X})
    (difference,) = result.differences
    before = run(export.load(onnx_models.single(training=True)), {"x": X})["y"]
    after = run(result.model, {"x": X})["y"]
    assert difference.name == "y"
    assert difference.max_abs_difference == pytest.approx(np.abs(after - before).max(), rel=1e-4)
    assert difference.max_abs_difference > 1
    note = "outputs and those of the model before, on the given data: y differs by up to"
    assert note in result.notes[0]


def test_running_statistics_that_were_outputs_give_the_stored_ones() -> None:
    model = onnx_models.make_model(
        [onnx_models.batch_norm_node(training=True)], outputs=["y", "y_mean", "y_var"]
    )
    result = freeze(model)
    assert result, result
    found = run(result.model, {"x": X})
    stored = onnx_models.parameters()
    np.testing.assert_array_equal(found["y_mean"], stored["m"])
    np.testing.assert_array_equal(found["y_var"], stored["v"])


def test_statistics_that_were_never_trained_are_refused() -> None:
    stored = {
        **onnx_models.parameters(),
        "m": np.zeros(3, np.float32),
        "v": np.ones(3, np.float32),
    }
    model = onnx_models.single(training=True, arrays=stored)
    result = freeze(model)
    assert not result
    assert result.changed == 0
    assert "untouched (mean 0, var 1)" in result.rows[0].reason
    assert freeze(model, "batch")


def test_batch_statistics_kept_on_purpose_are_lowered() -> None:
    result = freeze(onnx_models.single(training=True), "batch")
    assert result, result
    assert find_nodes(result.model) == []
    assert result.differences[0].max_abs_difference < 1e-5


def test_recalibrated_statistics_come_from_the_estimator() -> None:
    model = onnx_models.single(training=True)
    with pytest.raises(ValueError, match="'recalibrated' needs an estimator"):
        freeze(model, "recalibrated", data={"x": X})

    def estimate(opened: ir.Model, data: object) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        stats = cbn.batch_stats(data["x"])
        return {norm.name: (stats.mean, stats.var) for norm in find_nodes(opened)}

    with pytest.raises(ValueError, match="'recalibrated' needs data"):
        freeze(model, "recalibrated", estimator=estimate)
    result = freeze(model, "recalibrated", estimator=estimate, data={"x": X})
    assert result, result
    # On the data that they come from, they give what the batch gave.
    assert result.differences[0].max_abs_difference < 1e-5
    assert result.rows[0].action == "frozen with recalibrated statistics"
    assert not {"m", "v"} & set(result.model.graph.initializers)
    lacking = freeze(model, "recalibrated", estimator=lambda *_: {}, data={"x": X})
    assert not lacking
    assert lacking.rows[0].reason == "the estimator gave no statistics for it"


def test_nodes_in_eval_mode_stay() -> None:
    result = freeze(onnx_models.single())
    assert result
    assert result.rows[0].reason == "it is in eval mode already"


def test_nodes_that_share_statistics_are_frozen_apart() -> None:
    nodes = [
        onnx_models.batch_norm_node(y="h", training=True),
        onnx_models.batch_norm_node("h", training=True),
    ]
    result = freeze(onnx_models.make_model(nodes), nodes=["bn_h"], prove=False)
    assert [norm.mode for norm in find_nodes(result.model)] == ["eval", "training"]
    assert result.rows[1].reason == "not asked for"


def test_inside_a_subgraph() -> None:
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
    result = freeze(onnx_models.make_model([choice], inputs=[onnx_models.flag("c")]))
    assert result, result
    assert {norm.mode for norm in find_nodes(result.model)} == {"eval"}


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="expected policy to be one of 'stored', 'recalibrated', "):
        freeze(onnx_models.single(), "flip")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no BatchNormalization node: nothing to do"):
        freeze(onnx_models.make_model([helper.make_node("Abs", ["x"], ["y"])]))
    negative = {**onnx_models.parameters(), "v": np.array([1, -1, 1], np.float32)}
    result = freeze(onnx_models.single(training=True, arrays=negative))
    assert not result
    assert "cannot be normalized with" in result.rows[0].reason
