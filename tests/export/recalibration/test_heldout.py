"""Two models on the same held-out inputs: decisions, change of the outputs, and the metric."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from corruptions import DIGITS, contrast, load_digits
from onnx import helper
from onnx_models import batch_norm_node, make_model, parameters, run

from cbn import export
from cbn.export.inputs import model_inputs
from cbn.export.recalibration.data.sources import open_source
from cbn.export.recalibration.judge.heldout import HeldOut, compare, top1

MODEL = DIGITS / "digits.onnx"
IMAGES, LABELS = load_digits()


def source(data, model=MODEL, batch_size: int = 90):
    return open_source(data, model_inputs(model), batch_size=batch_size)


def shifted(amount: float):
    """The digits' network, its first layer's mean moved."""
    model = ir.load(MODEL)
    node = export.find_nodes(model)[0]
    mean = node.node.inputs[3]
    mean.const_value = ir.tensor(node.mean.array + np.float32(amount), name=mean.name)
    return model


def logits(model, images: np.ndarray = IMAGES) -> np.ndarray:
    proto = ir.to_proto(model if isinstance(model, ir.Model) else ir.load(model))
    proto.graph.input[0].name = "x"
    for node in proto.graph.node:
        node.input[:] = ["x" if name == "image" else name for name in node.input]
    return run(proto, images)["logits"]


def test_a_model_against_itself() -> None:
    found = compare(MODEL, MODEL, source(IMAGES), metric=top1, labels=LABELS)
    assert found.ok
    assert (found.output, found.kind) == ("logits", "scores")
    assert found.samples == found.decisions == 450
    assert found.agreement == found.confident_agreement == 1
    assert found.entropy_before == found.entropy_after
    assert found.change == 0
    assert found.classes_before == found.classes_after == 10
    assert (found.metric, found.num_classes) == ("top-1 accuracy of 'logits'", 10)
    assert found.metric_before == found.metric_after == pytest.approx(446 / 450)


def test_numbers_by_their_definitions() -> None:
    after = shifted(0.5)
    found = compare(MODEL, after, source(contrast(IMAGES)), metric=top1, labels=LABELS)
    old, new = logits(MODEL, contrast(IMAGES)), logits(after, contrast(IMAGES))
    p = np.exp(old - old.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    same = old.argmax(axis=1) == new.argmax(axis=1)
    sure = p.max(axis=1) >= 0.99
    assert found.agreement == pytest.approx(same.mean())
    assert found.sure == pytest.approx(sure.mean())
    assert found.confident_agreement == pytest.approx(same[sure].mean())
    entropy = -(p * np.log(p)).sum(axis=1).mean() / math.log(10)
    assert found.entropy_before == pytest.approx(entropy, rel=1e-4)
    change = np.sqrt(((new - old).astype(float) ** 2).mean()) / old.std(dtype=float)
    assert found.change == pytest.approx(change, rel=1e-4)
    for got, scores in ((found.metric_before, old), (found.metric_after, new)):
        assert got == pytest.approx((scores.argmax(axis=1) == LABELS).mean())


def test_batches_do_not_matter() -> None:
    one, many = (
        compare(MODEL, shifted(0.5), source(IMAGES, batch_size=size), metric=top1, labels=LABELS)
        for size in (450, 32)
    )
    assert one.agreement == many.agreement
    assert one.metric_after == many.metric_after
    assert one.change == pytest.approx(many.change, rel=1e-5)
    assert one.entropy_after == pytest.approx(many.entropy_after, rel=1e-5)


def test_a_metric_of_ones_own_sees_everything_at_once() -> None:
    calls = []

    def margin(outputs, labels) -> float:
        calls.append((outputs, labels))
        top = np.sort(outputs["logits"], axis=1)
        return (top[:, -1] - top[:, -2]).mean()

    found = compare(MODEL, shifted(9), source(IMAGES), metric=margin, labels=LABELS)
    assert len(calls) == 2
    for outputs, labels in calls:
        assert outputs["logits"].shape == (450, 10)
        np.testing.assert_array_equal(labels, LABELS)
    assert found.metric == "margin"
    assert found.worse
    assert not found.ok


def test_a_metric_without_labels_gets_none() -> None:
    found = compare(MODEL, MODEL, source(IMAGES), metric=lambda outputs, labels: labels is None)
    assert found.metric_after == 1


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [(0.5, 0.5, False), (0.5, 0.6, False), (0.5, 0.4, True), (0.5, math.nan, True)],
)
def test_worse_is_less_or_no_number(before: float, after: float, worse: bool) -> None:
    found = HeldOut(1, metric="m", metric_before=before, metric_after=after)
    assert found.worse is worse
    assert found.ok is not worse


def test_without_a_metric_nothing_is_worse() -> None:
    found = compare(MODEL, shifted(9), source(IMAGES))
    assert found.metric is None
    assert found.ok


def plain(scale: float = 1.0):
    arrays = {**parameters(), "s": parameters()["s"] * np.float32(scale)}
    return make_model([batch_norm_node()], arrays=arrays, shape=("N", 3, "H", "W"))


def test_outputs_without_classes_have_a_change_alone() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32)
    found = compare(plain(), plain(1.1), source(x, plain(), 8))
    assert (found.output, found.kind) == ("", "values")
    assert found.agreement is None
    assert found.entropy_before is None
    y = run(plain(), x)["y"].astype(float)
    z = run(plain(1.1), x)["y"].astype(float)
    assert found.change == pytest.approx(np.sqrt(((z - y) ** 2).mean()) / y.std(), rel=1e-5)


def two_heads() -> onnx.ModelProto:
    """The digits' network with a second output that could be scores: its logits, backwards."""
    model = onnx.load(MODEL)
    ten = helper.make_tensor("order", onnx.TensorProto.INT64, [10], range(9, -1, -1))
    model.graph.initializer.append(ten)
    model.graph.node.append(helper.make_node("Gather", ["logits", "order"], ["turned"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("turned", onnx.TensorProto.FLOAT, None))
    return model


def test_of_several_outputs_none_is_taken_for_the_scores_unless_named() -> None:
    model = two_heads()
    found = compare(model, model, source(IMAGES, model))
    assert (found.output, found.agreement) == ("", None)
    with pytest.raises(ValueError, match=r"needs one output of scores.*name the output"):
        compare(model, model, source(IMAGES, model), metric=top1, labels=LABELS)
    for name, labels in (("logits", LABELS), ("turned", 9 - LABELS)):
        found = compare(
            model, model, source(IMAGES, model), metric=top1, labels=labels, scores=name
        )
        assert (found.output, found.kind, found.num_classes) == (name, "scores", 10)
        assert found.metric == f"top-1 accuracy of {name!r}"
        assert found.metric_before == pytest.approx(446 / 450)


def test_outputs_of_ragged_sequences_are_no_tensors_to_compare() -> None:
    nodes = [
        batch_norm_node(),
        helper.make_node("SplitToSequence", ["y", "parts"], ["several"], axis=1),
    ]
    arrays = {**parameters(), "parts": np.array([1, 2])}
    model = make_model(nodes, arrays=arrays)
    kind = helper.make_tensor_sequence_value_info("several", onnx.TensorProto.FLOAT, None)
    model.graph.output.append(kind)
    x = np.random.default_rng(0).normal(size=(9, 3, 5)).astype(np.float32)
    found = compare(model, model, source(x, model))
    assert (found.change, found.samples, found.output) == (0, 9, "y")


def test_nan_is_no_decision() -> None:
    scores = np.eye(4, dtype=np.float32)
    scores[0] = np.nan
    scores[1, 3] = np.nan
    assert top1({"y": scores}, np.arange(4)) == 0.5


def test_another_shape_is_an_infinite_change() -> None:
    def nonzero(bias: float):
        arrays = {**parameters(), "b": np.full(3, bias, np.float32)}
        nodes = [
            batch_norm_node(y="h"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("NonZero", ["r"], ["y"]),
        ]
        return make_model(nodes, arrays=arrays, output_types={"y": 7})

    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    assert math.isinf(compare(nonzero(0), nonzero(9), source(x, nonzero(0))).change)


@pytest.mark.parametrize(
    ("outputs", "labels", "match"),
    [
        ({"y": np.eye(3, dtype=np.float32)}, None, "needs labels"),
        ({"y": np.ones((3, 2, 2, 2), np.float32)}, np.arange(3), r"shape \(3, K\), got 'y'"),
        ({"y": np.eye(3, dtype=np.float32)}, np.array([0, 1, 3]), "from 0 to 2"),
        ({"y": np.eye(3, dtype=np.float32)}, np.array([0, -1, 2]), "got -1 to 2"),
    ],
)
def test_top1_says_what_it_lacks(outputs, labels, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        top1(outputs, labels)


def test_progress_is_told() -> None:
    told = []
    compare(MODEL, MODEL, source(IMAGES), progress=lambda *given: told.append(given))
    assert told == [("comparing", number, 5) for number in range(1, 6)]


def test_too_few_labels() -> None:
    with pytest.raises(export.DataError, match="got 449 labels for 450 samples"):
        compare(MODEL, MODEL, source(IMAGES), metric=top1, labels=LABELS[:-1])
