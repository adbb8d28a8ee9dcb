"""What the drift report says in words, and what it leaves unsaid."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from corruptions import CORRUPTIONS, DIGITS, load_digits
from onnx import helper, numpy_helper
from onnx_models import batch_norm_node, make_model, parameters

from cbn.export.recalibration import drift

MODEL = DIGITS / "digits.onnx"
IMAGES, LABELS = load_digits()


def verdicts(data, model=MODEL, **options):
    return drift(model, np.asarray(data, np.float32), **options).verdicts


def with_statistics(change):
    """The digits model with other stored statistics: ``change(mean, var, index) -> mean, var``."""
    proto = onnx.load(MODEL)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    for index, node in enumerate(nodes):
        tensors = [stored[name] for name in node.input[3:5]]
        new = change(*map(numpy_helper.to_array, tensors), index)
        for tensor, array in zip(tensors, new, strict=True):
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return proto


def test_inputs_like_those_of_training_have_no_drift():
    (only,) = verdicts(IMAGES)
    assert only == (
        "no drift: the middle channel of no layer shifts by more than 0.02 deviations, and its "
        "variance ratio is 0.97 to 1.00"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (IMAGES * 0.3, "the inputs are darker and of lower contrast than in training"),
        (IMAGES + 0.4, "the inputs are brighter than in training"),
        ((IMAGES - 0.3) * 2 + 0.3, "the inputs are of higher contrast than in training"),
        (1 - IMAGES, "the inputs are a negative of what they were in training"),
        (CORRUPTIONS["contrast"](IMAGES), "the inputs are of lower contrast than in training"),
        (CORRUPTIONS["fog"](IMAGES), "the inputs are brighter and of lower contrast than in"),
        (IMAGES * 255, "the inputs are 255 times those of training"),
        (IMAGES / 255, "the inputs are 0.00392 times those of training"),
    ],
)
def test_a_change_of_light_or_scale_is_named(data, words):
    first, *_ = verdicts(data)
    assert first.startswith(words)


def test_the_numbers_behind_the_words_are_given():
    first, second = verdicts(IMAGES * 0.3)
    assert "layer 1 shifts by 0.41 deviations, with a variance ratio of 0.091" in first
    assert "their mean is 0.0916 where 0.305 would fit" in first
    assert "their deviation 0.113 where 0.376 would" in first
    assert "explains 100.0 % of its drift" in first
    assert second.startswith("5 of 5 layers drift, most of all '/bn1/BatchNormalization'")


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur", "pixelate"])
def test_what_is_more_than_light_is_not_called_light(name):
    first, *_ = verdicts(CORRUPTIONS[name](IMAGES))
    assert first.startswith("the inputs differ from those of training by more than brightness")


def test_noise_is_not_called_light():
    noise = np.random.default_rng(0).normal(0, 0.3, IMAGES.shape)
    assert "by more than brightness and contrast" in verdicts(IMAGES + noise)[0]


def test_drift_that_begins_later_is_not_blamed_on_light():
    (only,) = verdicts(IMAGES[LABELS == 1])
    assert only.startswith("3 of 5 layers drift")
    assert "drift begins at layer 3, while layer 1 sees nearly what it saw in training" in only


def test_without_the_first_layer_nothing_is_said_of_the_inputs():
    said = verdicts(IMAGES * 0.3, nodes=["*bn3*"])
    assert len(said) == 1
    assert "input" not in said[0]


def test_inputs_that_are_all_one_number():
    assert verdicts(np.full_like(IMAGES, 0.5))[0].startswith("the inputs are all one number, 0.5")


def test_nodes_in_training_mode():
    first, second = verdicts(IMAGES, DIGITS / "digits_training.onnx")
    assert first.startswith("outputs match batch statistics: 5 of 5 layers are in training mode")
    assert "the exporter ran in training mode" in first
    assert second.startswith("no drift")


def test_statistics_that_were_never_trained():
    model = with_statistics(lambda mean, var, _: (0 * mean, 0 * var + 1))
    (only,) = verdicts(IMAGES, model)
    assert only.startswith(
        "the model's stored statistics are untouched (mean 0, variance 1) in every"
    )


def test_one_layer_that_was_never_trained_is_named_and_the_others_are_judged():
    model = with_statistics(lambda m, v, i: (0 * m, 0 * v + 1) if i == 4 else (m, v))
    first, second = verdicts(IMAGES, model)
    assert "in 1 of 5 layers ('/bn5/BatchNormalization')" in first
    assert second.startswith("no drift")


@pytest.mark.parametrize("ddof", [0, 1])
def test_statistics_of_this_very_data_are_told_apart(ddof):
    rows = drift(MODEL, IMAGES[:40]).rows
    own = rows[0]
    size = own.observations
    var = own.observed_var * size / (size - ddof)
    model = with_statistics(lambda m, v, i: (own.observed_mean, var) if i == 0 else (m, v))
    (only,) = verdicts(IMAGES[:40], model, nodes=["*bn1*"])
    assert only.startswith("the stored statistics are those of this very data")
    (other,) = verdicts(IMAGES[40:80], model, nodes=["*bn1*"])
    assert "very data" not in other


def test_few_samples_are_said_to_be_few():
    first, *_ = verdicts(IMAGES[:4])
    assert first.startswith("4 samples are few: in '/bn5/BatchNormalization' the middle channel")
    assert verdicts(IMAGES[:1])[0].startswith("one sample alone")


def test_dead_and_awake_channels():
    x = np.random.default_rng(0).normal(size=(30, 3, 5))
    x[:, 0] = 2
    arrays = {**parameters(), "m": np.zeros(3, np.float32), "v": np.ones(3, np.float32)}
    arrays["m"][1] = 0.01
    *_, last = verdicts(x, make_model([batch_norm_node()], arrays=arrays))
    assert (
        last
        == "a channel is dead: constant on this data, and not in training (channel 0 of 'bn_y')"
    )
    arrays["v"][1:] = 0
    *_, last = verdicts(x, make_model([batch_norm_node()], arrays=arrays))
    assert last == (
        "2 channels are awake: constant in training, and not on this data (in 'bn_y': 1, 2)"
    )


CHANNELS = 8


def small(nodes, shape):
    arrays = parameters(CHANNELS)
    generator = np.random.default_rng(5)
    arrays["w"] = generator.normal(size=(CHANNELS, 3)).astype(np.float32)
    arrays["k"] = generator.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32)
    return make_model(nodes, arrays=arrays, shape=shape)


def test_inputs_without_a_place_are_higher_not_brighter():
    model = small(
        [helper.make_node("Gemm", ["x", "w"], ["h"], transB=1), batch_norm_node("h")], ("N", 3)
    )
    x = np.random.default_rng(0).normal(size=(500, 3))
    model = fitted(model, x)
    assert verdicts(x + 3, model)[0].startswith("the inputs are higher than in training")
    assert verdicts(x / 3, model)[0].startswith("the inputs are of lower spread than in training")


@pytest.mark.parametrize("first", ["Abs", "Sigmoid"])
def test_nothing_is_said_of_light_where_the_first_layer_does_not_hear_it_plainly(first):
    nodes = [
        helper.make_node(first, ["x"], ["a"]),
        helper.make_node("Conv", ["a", "k"], ["h"]),
        batch_norm_node("h"),
    ]
    x = np.random.default_rng(0).normal(size=(20, 3, 6, 6))
    report = drift(fitted(small(nodes, ("N", 3, "H", "W")), x), (x * 5 + 2).astype(np.float32))
    assert report.inputs is None
    assert not report
    assert not any("input" in text for text in report.verdicts)


def test_preprocessing_inside_the_model_is_seen_through():
    nodes = [
        helper.make_node("Sub", ["x", "center"], ["a"]),
        helper.make_node("Div", ["a", "size"], ["p"]),
        helper.make_node("Conv", ["p", "k"], ["h"], pads=[1, 1, 1, 1]),
        batch_norm_node("h"),
    ]
    model = small(nodes, ("N", 3, "H", "W"))
    for name, number in (("center", 110.0), ("size", 60.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(number), name))
    x = np.random.default_rng(0).uniform(60, 200, size=(20, 3, 6, 6))
    found = drift(fitted(model, x), (x * 0.4 + 5).astype(np.float32)).inputs
    assert found.scale == pytest.approx(1 / 0.4, rel=1e-3)
    assert found.offset == pytest.approx(-5 / 0.4, abs=0.1)
    assert found.explained > 0.9999


def fitted(model, x):
    """The model with the statistics that its one node has on x."""
    (row,) = drift(model, np.asarray(x, np.float32)).rows
    for tensor in model.graph.initializer:
        if tensor.name in ("m", "v"):
            array = row.observed_mean if tensor.name == "m" else row.observed_var
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return model
