"""drift(): stored against observed statistics, layer by layer."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
from corruptions import DIGITS, load_digits
from onnx import helper, numpy_helper
from onnx_models import batch_norm_node, flag, make_model, parameters, run, single

from cbn import export
from cbn.export.data import DataError
from cbn.export.files import ModelError
from cbn.export.recalibration import drift
from cbn.export.recalibration.measure.targets import choose_targets
from cbn.export.recalibration.report.drift import drift_from

MODEL = DIGITS / "digits.onnx"
IMAGES, _ = load_digits()


def values(samples=24, channels=3, places=5, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, channels, places))
    x = x * generator.uniform(0.5, 2, (channels, 1)) + generator.normal(size=(channels, 1))
    return x.astype(np.float32)


def chain():
    """x -> bn_h -> Tanh -> bn_y: the second sees what the first makes of x."""
    nodes = [
        batch_norm_node(y="h"),
        helper.make_node("Tanh", ["h"], ["t"]),
        batch_norm_node("t", inputs=("s", "b", "m2", "v2")),
    ]
    stored = parameters()
    return make_model(nodes, arrays={**stored, "m2": stored["m"] / 2, "v2": stored["v"] / 2})


def moments(x):
    x = x.astype(np.float64)
    return x.mean(axis=(0, 2)), x.var(axis=(0, 2))


def symmetric_kl(mean1, var1, mean2, var2):
    """Both divergences of two Gaussians, by the textbook, added up."""

    def one_way(m, v, n, w):
        return math.log(math.sqrt(w / v)) + (v + (m - n) ** 2) / (2 * w) - 0.5

    return one_way(mean1, var1, mean2, var2) + one_way(mean2, var2, mean1, var1)


def test_a_row_holds_stored_and_observed_statistics_of_a_layer():
    x = values()
    (row,) = drift(single(), x).rows
    stored = parameters()
    mean, var = moments(x)
    np.testing.assert_array_equal(row.stored_mean, stored["m"].astype(np.float64))
    np.testing.assert_array_equal(row.stored_var, stored["v"].astype(np.float64))
    np.testing.assert_allclose(row.observed_mean, mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(row.observed_var, var, rtol=1e-6)
    assert (row.name, row.position, row.channels) == ("bn_y", 1, 3)
    assert (row.samples, row.observations) == (24, 120)
    assert row.eps == np.float32(1e-5)


def test_shift_ratio_and_kl_are_those_of_the_two_gaussians():
    (row,) = drift(single(), values()).rows
    for c in range(3):
        stored, observed = row.stored_var[c] + row.eps, row.observed_var[c] + row.eps
        apart = row.observed_mean[c] - row.stored_mean[c]
        expected = symmetric_kl(row.stored_mean[c], stored, row.observed_mean[c], observed)
        assert row.shift[c] == pytest.approx(apart / math.sqrt(stored), rel=1e-12)
        assert row.var_ratio[c] == pytest.approx(observed / stored, rel=1e-12)
        assert row.kl[c] == pytest.approx(expected, rel=1e-9)
    assert row.typical_shift == np.median(np.abs(row.shift))
    assert row.typical_ratio == np.median(row.var_ratio)
    assert row.typical_kl == np.median(row.kl)
    assert row.largest_shift == row.shift[row.largest_channel]
    assert abs(row.largest_shift) == np.abs(row.shift).max()


def test_later_layers_are_measured_under_the_stored_statistics_of_earlier_ones():
    x = values()
    model = chain()
    inside = onnx.ModelProto.FromString(model.SerializeToString())
    inside.graph.output.append(helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None))
    mean, var = moments(run(inside, x)["t"])
    row = drift(model, x).rows[1]
    np.testing.assert_allclose(row.observed_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(row.observed_var, var, rtol=1e-5)


def test_under_batch_statistics_the_second_layer_sees_something_else():
    stored, batch = (drift(chain(), values(), method=method) for method in ("stored", "batch"))
    np.testing.assert_allclose(stored.rows[0].observed_mean, batch.rows[0].observed_mean)
    assert np.abs(stored.rows[1].observed_mean - batch.rows[1].observed_mean).max() > 0.05
    assert (stored.method, batch.method) == ("stored", "batch")


def test_a_model_in_training_mode_is_measured_with_its_stored_statistics():
    reports = [drift(DIGITS / name, IMAGES) for name in ("digits.onnx", "digits_training.onnx")]
    for eval_row, training_row in zip(*(report.rows for report in reports), strict=True):
        np.testing.assert_allclose(training_row.observed_mean, eval_row.observed_mean, rtol=1e-5)
        assert (eval_row.training, training_row.training) == (False, True)


def test_the_split_into_batches_does_not_matter():
    one, other = (drift(MODEL, IMAGES[:50], batch_size=size) for size in (50, 7))
    for row, same in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose(same.observed_mean, row.observed_mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(same.observed_var, row.observed_var, rtol=1e-6)
        assert same.samples == row.samples == 50
    assert one.inputs.scale == pytest.approx(other.inputs.scale, rel=1e-4)


def test_layers_are_ranked_by_the_kl_of_their_middle_channel():
    report = drift(MODEL, IMAGES * np.float32(0.3))
    by_kl = sorted(report.rows, key=lambda row: -row.typical_kl)
    assert report.ranking == tuple(row.name for row in by_kl)
    assert [row.rank for row in by_kl] == [1, 2, 3, 4, 5]


def test_a_layer_that_drifts_is_not_ok_and_makes_the_report_false():
    assert drift(MODEL, IMAGES)
    report = drift(MODEL, IMAGES * np.float32(0.3))
    assert not report
    assert [row.ok for row in report.rows] == [False] * 5


def test_what_chance_may_give_is_no_drift():
    """A layer whose samples are far apart: a few of them have another mean by chance alone."""
    centers = np.random.default_rng(0).normal(size=(4, 3, 1)).astype(np.float32)
    x = np.broadcast_to(centers, (4, 3, 50)).copy()
    model = make_model(
        [batch_norm_node()], arrays={**parameters(), **like(np.zeros(3), np.ones(3))}
    )
    (row,) = drift(model, x).rows
    assert row.typical_kl > 0.1
    assert row.ok


def like(mean, var):
    return {"m": mean.astype(np.float32), "v": var.astype(np.float32)}


def test_dead_and_awake_channels_are_found():
    x = values()
    x[:, 1] = -3.25
    arrays = {**parameters(), **like(np.array([0, 1, 4.5]), np.array([1, 2, 0]))}
    (row,) = drift(make_model([batch_norm_node()], arrays=arrays), x).rows
    assert (row.dead, row.awake) == ((1,), (2,))
    assert np.isfinite(row.kl).all()


def test_only_the_nodes_asked_for_keep_their_place_in_the_model():
    report = drift(MODEL, IMAGES[:20], nodes=["*bn[24]*"])
    assert [(row.position, row.name[:4]) for row in report.rows] == [(2, "/bn2"), (4, "/bn4")]


def test_nodes_that_cannot_be_measured_are_named_with_the_reason():
    then = helper.make_graph(
        [batch_norm_node(y="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])],
        "else",
        [],
        [helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, None)],
    )
    branch = helper.make_node("If", ["c"], ["h"], then_branch=then, else_branch=other, name="If_1")
    model = make_model([branch, batch_norm_node("h")], inputs=[flag("c")])
    report = drift(model, [{"x": values(), "c": np.asarray(False)}])
    ((name, reason),) = report.refused
    assert name.startswith("If_1.then_branch/")
    assert "inside" in reason
    assert any(name in text for text in report.verdicts)


def test_a_layer_that_is_used_twice_is_one_row():
    nodes = [batch_norm_node(y="h"), batch_norm_node("h", "y")]
    x = values()
    (row,) = drift(make_model(nodes), x).rows
    assert row.members == ("bn_h", "bn_y")
    assert (row.samples, row.observations) == (24, 2 * 120)


def test_json_is_strict_and_whole():
    report = drift(MODEL, IMAGES[:1])
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["ranking"] == list(report.ranking)
    assert plain["verdicts"] == list(report.verdicts)
    assert plain["samples"] == 1
    first = plain["rows"][0]
    assert first["shift"] == report.rows[0].shift.tolist()
    assert first["mean_error"] == [None] * 16
    assert first["drifts"] is False
    assert plain["inputs"]["input"] == "image"


def test_the_text_is_a_table_and_the_verdicts():
    report = drift(MODEL, IMAGES)
    table, verdicts = str(report).split("\n\n")
    assert len(table.splitlines()) == 2 + 5
    assert tuple(verdicts.splitlines()) == report.verdicts


def test_progress_is_told_of_each_batch():
    told = []
    drift(MODEL, IMAGES[:20], batch_size=8, progress=lambda *given: told.append(given))
    assert told == [("measuring", 1, 3), ("measuring", 2, 3), ("measuring", 3, 3)]


def test_the_model_is_not_changed():
    model = export.load(MODEL)
    before = [norm.mean.array.copy() for norm in export.find_nodes(model)]
    drift(model, IMAGES[:20])
    after = [norm.mean.array for norm in export.find_nodes(model)]
    assert len(model.graph.outputs) == 1
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_statistics_of_another_layer_are_refused():
    targets = choose_targets(MODEL)
    seen = {target.name: None for target in targets.targets}
    with pytest.raises(ValueError, match=r"expected some of '/bn1/BatchNormalization', got none"):
        drift_from(targets, {})
    with pytest.raises(ValueError, match=r"expected method .* got 'guess'"):
        drift_from(targets, seen, method="guess")


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (MODEL, IMAGES.astype(np.float64), DataError, "float64"),
        (MODEL, IMAGES * np.float32("nan"), DataError, "/bn1"),
        (make_model([helper.make_node("Relu", ["x"], ["y"])]), values(), ModelError, "no Batch"),
    ],
)
def test_what_cannot_be_measured_is_an_error(model, data, error, message):
    with pytest.raises(error, match=message):
        drift(model, data)


def test_shared_initializers_are_read_from_the_model():
    """A target's stored statistics are those that the file holds, to the bit."""
    proto = onnx.load(MODEL)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    for node, row in zip(nodes, drift(MODEL, IMAGES[:8]).rows, strict=True):
        np.testing.assert_array_equal(row.stored_mean.astype(np.float32), stored[node.input[3]])
        np.testing.assert_array_equal(row.stored_var.astype(np.float32), stored[node.input[4]])
