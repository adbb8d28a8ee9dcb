"""The crosscheck: what holds, what must not, and what it says of what it cannot check."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import TensorProto, helper

import cbn
from cbn.export import check, outputs, probe
from cbn.export.check import crosscheck
from cbn.export.files import ModelError
from cbn.export.nodes import find_nodes

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
DIGITS = Path(__file__).parents[2] / "examples" / "digits"
X = np.random.default_rng(5).normal(1, 2, (6, 3, 8)).astype(np.float32)


def rows(report, kind):
    return [row for row in report.rows if row.kind == kind]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 18])
@pytest.mark.parametrize("mode", ["eval", "training"])
def test_a_node_in_each_opset_mode_and_type(opset, mode, dtype):
    report = crosscheck(
        onnx_models.single(training=mode == "training", opset=opset, dtype=dtype), X.astype(dtype)
    )
    assert report
    (node,), (output,) = rows(report, "node"), rows(report, "output")
    assert (node.name, node.shape, node.opset, node.mode) == ("bn_y", (6, 3, 8), opset, mode)
    assert (output.name, output.shape, output.mode) == ("y", (6, 3, 8), None)
    assert node.provider == output.provider == "CPUExecutionProvider"
    assert 0 <= node.max_ulp_error <= node.tolerance


@pytest.mark.parametrize(
    ("name", "nodes"),
    [("resnet50", 53), ("densenet121", 121), ("inception_v2", 69), ("shufflenet", 49)],
)
@pytest.mark.parametrize("given", [False, True], ids=["random", "ramp"])
def test_the_models_in_the_onnx_wheel(name, nodes, given, tmp_path):
    data = None
    if given:  # what onnx's own test runner feeds them
        shape = (1, 3, 224, 224)
        data = tmp_path / "ramp.npy"
        np.save(data, (np.arange(np.prod(shape)) / np.prod(shape)).reshape(shape).astype("f4"))
    report = crosscheck(LIGHT / f"light_{name}.onnx", data)
    assert report
    assert len(rows(report, "node")) == nodes
    assert len(rows(report, "output")) == 1


@pytest.mark.parametrize("name", ["digits", "digits_training"])
def test_a_trained_network_on_its_own_data(name):
    report = crosscheck(DIGITS / f"{name}.onnx", DIGITS / "digits.npz")
    assert report
    assert len(rows(report, "node")) == 5
    mode = "training" if name.endswith("training") else "eval"
    assert {row.mode for row in rows(report, "node")} == {mode}


def perturb(monkeypatch, **changes):
    """Let the check believe that the nodes say something else than they do."""

    def found(model):
        return [dataclasses.replace(node, **changes) for node in find_nodes(model)]

    monkeypatch.setattr(check, "find_nodes", found)


@pytest.mark.parametrize("name", ["digits", "digits_training"])
def test_a_wrong_epsilon_fails(monkeypatch, name):
    perturb(monkeypatch, eps=1e-4)
    report = crosscheck(DIGITS / f"{name}.onnx", DIGITS / "digits.npz")
    assert not report
    assert not any(row.ok for row in rows(report, "node"))
    assert all(row.ok for row in rows(report, "output"))


def test_a_wrong_momentum_fails_and_the_row_says_where(monkeypatch):
    perturb(monkeypatch, momentum=0.1)
    report = crosscheck(DIGITS / "digits_training.onnx", DIGITS / "digits.npz")
    for row in rows(report, "node"):
        assert not row.ok
        assert re.fullmatch("the worst is running_(mean|var)", row.remark)


def test_one_channel_with_a_wrong_mean_fails(monkeypatch):
    model = ir.load(DIGITS / "digits.onnx")
    nodes = find_nodes(model)
    wrong = nodes[2].mean.array.copy()
    wrong[np.abs(wrong).argmax()] *= np.float32(1.001)
    nodes[2] = dataclasses.replace(nodes[2], mean=dataclasses.replace(nodes[2].mean, array=wrong))
    monkeypatch.setattr(check, "find_nodes", lambda _: nodes)
    report = crosscheck(model, DIGITS / "digits.npz")
    assert [row.ok for row in rows(report, "node")] == [True, True, False, True, True]


def test_a_change_by_optimization_fails(monkeypatch):
    real = outputs.make_session

    def wrong_fold(model, *args, optimize, **kwargs):
        if optimize:
            model = model.clone()
            weight = model.graph.initializers["s"]
            changed = weight.const_value.numpy() * np.float32(1.00001)
            weight.const_value = ir.Tensor(changed, name="s")
        return real(model, *args, optimize=optimize, **kwargs)

    monkeypatch.setattr(outputs, "make_session", wrong_fold)
    report = crosscheck(onnx_models.single(), X)
    assert [row.ok for row in rows(report, "node")] == [True]
    assert [row.ok for row in rows(report, "output")] == [False]


def test_integer_outputs_must_be_equal(monkeypatch):
    nodes = [
        onnx_models.batch_norm_node(),
        helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
    ]
    kinds = {"best": TensorProto.INT64}
    model = onnx_models.make_model(nodes, outputs=["best"], output_types=kinds)
    assert crosscheck(model, X)
    real = outputs.run_session
    flips = iter([0, 1])  # the second run is the optimized one

    def one_differs(session, feeds):
        values = real(session, feeds)
        values["best"][0, 0] += next(flips)
        return values

    monkeypatch.setattr(outputs, "run_session", one_differs)
    (row,) = rows(crosscheck(model, X), "output")
    assert not row.ok
    assert row.remark == "1 of 48 values differ"
    assert row.max_abs_error == 1


def test_saturated_probabilities_are_measured_at_the_scale_of_the_function():
    nodes = [onnx_models.batch_norm_node(y="z"), helper.make_node("Sigmoid", ["z"], ["y"])]
    arrays = onnx_models.parameters() | {"b": np.full(3, -16, np.float32)}
    (row,) = rows(crosscheck(onnx_models.make_model(nodes, arrays=arrays), X), "output")
    assert row.ok
    assert row.max_ulp_error < 4


def test_parameters_that_the_model_computes_or_takes_as_inputs_are_looked_at():
    bias = helper.make_tensor_value_info("bias", TensorProto.FLOAT, [3])
    nodes = [
        helper.make_node("Exp", ["s"], ["e"]),
        onnx_models.batch_norm_node(inputs=["e", "bias", "m", "v"]),
    ]
    model = onnx_models.make_model(nodes, inputs=[bias])
    assert crosscheck(model, {"x": X, "bias": np.arange(3, dtype=np.float32)})
    assert crosscheck(model)


def test_nodes_of_model_local_functions_are_checked():
    names = ["x", "s", "b", "m", "v"]
    body = helper.make_function(
        "local",
        "Block",
        names,
        ["y"],
        [onnx_models.batch_norm_node()],
        [helper.make_opsetid("", 15)],
    )
    nodes = [
        helper.make_node("Block", names, ["z"], domain="local"),
        helper.make_node("Block", ["z", *names[1:]], ["y"], domain="local"),
    ]
    report = crosscheck(onnx_models.make_model(nodes, functions=[body]), X)
    assert report
    assert len(rows(report, "node")) == 2


def test_nodes_of_subgraphs_are_no_silent_pass():
    branches = {
        f"{which}_branch": helper.make_graph(
            [onnx_models.batch_norm_node(y=which)],
            which,
            [],
            [helper.make_tensor_value_info(which, TensorProto.FLOAT, None)],
        )
        for which in ("then", "else")
    }
    node = helper.make_node("If", ["c"], ["y"], name="if", **branches)
    model = onnx_models.make_model([node], inputs=[onnx_models.flag("c")])
    report = crosscheck(model, {"x": X, "c": np.array(True)})
    assert not report
    for row in rows(report, "node"):
        assert not row.ok
        assert row.max_ulp_error is None
        assert row.remark.startswith("not checked: it is inside if.")
    assert [row.ok for row in rows(report, "output")] == [True]


def test_initializers_that_onnxruntime_overwrites_are_found():
    aliased = onnx_models.batch_norm_node(training=True, inputs=["v", "m", "m", "v"])
    report = crosscheck(onnx_models.make_model([aliased]), X)
    assert not report
    (row,) = rows(report, "output")
    assert "two runs on the same input differ" in row.remark


def test_a_node_whose_second_run_differs_is_named(monkeypatch):
    real = probe.run_session
    calls = iter(range(9))

    def drifting(session, feeds, names):
        values = real(session, feeds, names)
        if "y" in values and next(calls) == 1:
            values["y"] = values["y"] + 1
        return values

    monkeypatch.setattr(probe, "run_session", drifting)
    (row,) = rows(crosscheck(onnx_models.single(training=True), X), "node")
    assert not row.ok
    assert row.remark.startswith("two runs on the same input differ: onnxruntime overwrites")


@pytest.mark.parametrize("training", [False, True])
def test_nan_and_infinity_in_the_data_go_through(training):
    x = X.copy()
    x[0, 0, 0], x[1, 1, 1] = np.nan, np.inf
    assert crosscheck(onnx_models.single(training=training), x)


def test_nan_on_one_side_alone_fails(monkeypatch):
    real = probe.run_session

    def broken(session, feeds, names):
        values = real(session, feeds, names)
        if "y" in values:
            values["y"][0, 0, 0] = np.nan
        return values

    monkeypatch.setattr(probe, "run_session", broken)
    report = crosscheck(onnx_models.single(), X)
    (row,) = rows(report, "node")
    assert (row.ok, row.max_abs_error) == (False, np.inf)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["ok"] is False


def test_what_cbn_refuses_is_a_row_with_its_reason():
    arrays = onnx_models.parameters() | {"v": np.array([1, -1, 1], np.float32)}
    report = crosscheck(onnx_models.single(arrays=arrays), X)
    (row,) = rows(report, "node")
    assert not row.ok
    assert "running_var: expected values >= 0, got -1.0 at channel 1" in row.remark
    one = crosscheck(onnx_models.single(training=True), X[:1, :, :1])
    assert "more than 1 value per channel" in rows(one, "node")[0].remark


def test_rounding_that_swamps_the_output_is_remarked_on():
    x = np.random.default_rng(0).normal(1e6, 1, (8, 3, 4000)).astype(np.float32)
    (row,) = rows(crosscheck(onnx_models.single(training=True), x), "node")
    assert "large against the output" in row.remark
    (row,) = rows(crosscheck(onnx_models.single(training=True), X), "node")
    assert row.remark == ""


def test_an_affected_sample_in_any_batch_counts(monkeypatch):
    x = np.zeros((100, 3, 8), np.float32)
    x[70] = 1000
    perturb(monkeypatch, eps=1e-4)
    arrays = onnx_models.parameters() | {"b": np.zeros(3, "f4"), "m": np.zeros(3, "f4")}
    model = onnx_models.single(arrays=arrays)
    (row,) = rows(crosscheck(model, x), "node")
    assert row.shape == (25, 3, 8)
    assert not row.ok
    assert crosscheck(model, x[:70])


def test_few_nodes_at_once_give_what_all_do(monkeypatch):
    whole = crosscheck(DIGITS / "digits_training.onnx", DIGITS / "digits.npz")
    monkeypatch.setattr(probe, "_TAPPED_BYTES", 1)
    assert crosscheck(DIGITS / "digits_training.onnx", DIGITS / "digits.npz") == whole


def test_threads_change_nothing_of_cbns_part():
    one, two = (crosscheck(onnx_models.single(), X, num_threads=n) for n in (1, 2))
    assert one == two


def test_the_given_model_is_not_changed():
    model = ir.load(DIGITS / "digits.onnx")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert crosscheck(model, DIGITS / "digits.npz")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_random_inputs_are_seeded():
    model = onnx_models.single()
    assert crosscheck(model, seed=1) == crosscheck(model, seed=1)
    assert len({crosscheck(model, seed=seed) for seed in range(8)}) > 1


def test_no_batch_normalization_is_an_error():
    model = onnx_models.make_model([helper.make_node("Abs", ["x"], ["y"])])
    with pytest.raises(ModelError, match="no BatchNormalization node"):
        crosscheck(model)


def test_no_batch_normalization_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "folded.onnx"
    onnx.save(onnx_models.make_model([helper.make_node("Abs", ["x"], ["y"])]), path)
    with pytest.raises(ModelError, match=r"folded\.onnx has no BatchNormalization node"):
        crosscheck(path)


@pytest.mark.parametrize("training", [False, True])
def test_a_float16_layer(training):
    layer = cbn.BatchNorm2d(3, dtype="float16").train(training)
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 5, 5)).astype(np.float16)
    assert crosscheck(layer, x)


def test_a_bfloat16_layer_is_refused():
    with pytest.raises(ModelError, match="no BatchNormalization of bfloat16 on the CPU"):
        crosscheck(cbn.BatchNorm2d(3, dtype="bfloat16"))


def test_a_negative_variance_is_a_row_that_says_so():
    arrays = onnx_models.parameters() | {"v": np.array([1, -1, 1], np.float32)}
    (row,) = rows(crosscheck(onnx_models.single(arrays=arrays), X), "node")
    assert not row.ok
    assert "running_var: expected values >= 0, got -1.0 at channel 1" in row.remark


@pytest.mark.parametrize("opset", [1, 6])
def test_an_opset_that_onnxruntime_cannot_run_is_an_error(opset):
    with pytest.raises(ModelError, match=f"'bn_y' is BatchNormalization of opset {opset}.*opset 7"):
        crosscheck(onnx_models.single(opset=opset))


def test_random_inputs_that_the_model_cannot_take_are_said_to_be_random():
    model = onnx_models.single(shape=("N", "C", "L"))  # random inputs get 32 channels, it has 3
    with pytest.raises(ModelError, match=r"'x' \(4, 32, 32\).*inputs are random.*give data"):
        crosscheck(model)
    with pytest.raises(ModelError) as given:
        crosscheck(model, np.zeros((2, 5, 4), np.float32))
    assert "random" not in str(given.value)


def test_the_table_and_the_json_show_the_rows():
    report = crosscheck(onnx_models.single(), X)
    text = str(report).splitlines()
    assert text[0].split()[:5] == ["name", "shape", "opset", "mode", "provider"]
    assert re.match(r"bn_y +6x3x8 +15 +eval +CPU +\d\.\d\de-\d\d +[\d.]+ +15 +pass$", text[2])
    content = report.to_dict()
    assert content["rows"][0]["name"] == "bn_y"
    assert json.loads(json.dumps(content, allow_nan=False)) == content


LAYERS = [
    (cbn.BatchNorm1d, (9, 4)),
    (cbn.BatchNorm1d, (9, 4, 5)),
    (cbn.BatchNorm2d, (9, 4, 5, 6)),
    (cbn.BatchNorm3d, (9, 4, 3, 5, 6)),
]


@pytest.mark.parametrize(("kind", "shape"), LAYERS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": False},
        {"track_running_stats": False},
        {"momentum": None},
        {"channels_last": True},
    ],
    ids=str,
)
def test_layers(kind, shape, training, dtype, options):
    bn = kind(4, dtype=dtype, **options).train(training)
    generator = np.random.default_rng(0)
    state = bn.state_dict()
    for name in state.keys() - {"num_batches_tracked"}:
        state[name] = generator.uniform(0.5, 2, 4).astype(dtype)
    bn.load_state_dict(state)
    x = generator.normal(3, 2, shape).astype(dtype)
    if bn.channels_last:
        x = np.moveaxis(x, 1, -1)
    report = crosscheck(bn, x)
    assert report
    names = [row.name for row in rows(report, "layer")]
    tracks = training and bn.track_running_stats
    assert names == (["y", "running_mean", "running_var"] if tracks else ["y"])
    after = bn.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in state.items())


def test_a_layer_on_random_inputs():
    assert crosscheck(cbn.BatchNorm2d(3), seed=1)


def test_a_layer_that_gives_something_else_fails(monkeypatch):
    bn = cbn.BatchNorm1d(3).eval()
    right = check._as_stored

    def wrong(layer):
        twin = right(layer)
        twin.running_mean = twin.running_mean + np.float32(1e-5)
        return twin

    monkeypatch.setattr(check, "_as_stored", wrong)
    report = crosscheck(bn, X)
    assert [row.ok for row in report.rows] == [True, True, False]


def test_data_that_does_not_fit_a_layer_is_an_error():
    with pytest.raises(ValueError, match="input 'x': expected float32"):
        crosscheck(cbn.BatchNorm1d(3), X.astype(np.float64))
    with pytest.raises(ValueError, match="axis 1 has 3 in place of 4"):
        crosscheck(cbn.BatchNorm1d(4), X)
