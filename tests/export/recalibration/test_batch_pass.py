"""Method "batch": each node normalizes with its batch, and tells what it saw."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
import recalibration_models as models
from onnx import helper

from cbn.export import DataError, ModelError, find_nodes, save
from cbn.export.opsets import newest_opset
from cbn.export.recalibration.measure.batch_pass import BatchPass
from cbn.export.recalibration.measure.instrument import instrument
from cbn.export.recalibration.measure.targets import choose_targets

BN = onnx_models.batch_norm_node


def passed(model, batches, nodes=None, **options):
    """What is seen over all batches, merged in order."""
    run = BatchPass(choose_targets(model, nodes), num_threads=1, **options)
    merged, first = {}, 0
    for x in batches:
        seen = run({"x": x}, first)
        merged = {name: merged.get(name, 0) + found for name, found in seen.items()}
        first += len(x)
    return merged


def largest_error(found, expected):
    return max(
        models.error(found[name].values, seen)
        for name, seen in zip(("bn_h", "bn_y"), expected, strict=True)
    )


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("sizes", [(12,), (5, 7), (2, 9, 1)])
def test_batches_are_pooled_as_values(rank, sizes):
    batches = models.cut(models.images(12, rank), sizes)
    if rank == 2 and 1 in sizes:
        batches = batches[:2]  # one value has no variance to normalize with
    found = passed(models.two_layers(rank), batches)
    assert largest_error(found, models.batch_rule(batches)) < 2e-6
    assert found["bn_y"].samples == sum(map(len, batches))
    assert found["bn_y"].values.count == sum(x.size for x in batches) // 3


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 13, 14, 15, 17, 18, newest_opset()])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_every_opset_in_either_mode(opset, training):
    batches = [models.images(6)]
    found = passed(models.two_layers(opset=opset, training=training), batches)
    assert largest_error(found, models.batch_rule(batches)) < 2e-6


def test_doubles_are_computed_in_double():
    batches = models.cut(models.images(9, 2, dtype="float64"), (4, 5))
    found = passed(models.two_layers(2, dtype="float64"), batches)
    assert largest_error(found, models.batch_rule(batches, "float64")) < 1e-13


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_summed_in_float32(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    number = helper.np_dtype_to_tensor_dtype(kind)
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=number),
        BN("x16", "h16"),
        helper.make_node("Cast", ["h16"], ["h"], to=onnx.TensorProto.FLOAT),
        BN("h", "y", inputs=models.SECOND),
    ]
    arrays = models.parameters()
    arrays |= {name: arrays[name].astype(kind) for name in "sbmv"}
    model = onnx_models.make_model(nodes, arrays=arrays, shape=("N", 3, "H", "W"))
    x = models.images(64) + np.float32(30)
    found = passed(model, [x])
    rounded = models.Seen.of([x.astype(kind)])
    assert models.error(found["bn_h16"].values, rounded) < 1e-6
    # Its output is of the type that it had.
    told = found["bn_y"].values
    p = {name: arrays[name].astype(np.float64) for name in "sb"}
    assert np.abs(told.mean - p["b"]).max() < 10 * ml_dtypes.finfo(kind).eps


@pytest.mark.parametrize("size", [1, 7])
def test_a_mean_far_above_the_deviation_costs_few_digits(size):
    x = (models.images(size) + 1e4).astype(np.float32)
    found = passed(models.two_layers(), [x])
    assert models.error(found["bn_h"].values, models.Seen.of([x])) < 1e-5
    assert models.error(found["bn_y"].values, models.batch_rule([x])[1]) < 1e-4


def test_a_first_sample_unlike_all_others_costs_few_digits():
    x = models.images(30)
    x[0] += 1e4
    found = passed(models.two_layers(), [x])
    assert models.error(found["bn_h"].values, models.Seen.of([x])) < 1e-5


def test_long_sums_keep_their_digits():
    x = np.random.default_rng(0).normal(size=(2, 3, 200, 300)).astype(np.float32)
    found = passed(onnx_models.of_opset(), [x])
    (seen,) = found.values()
    assert models.error(seen.values, models.Seen.of([x])) < 5e-7


def test_a_variance_that_rounds_to_less_than_0_is_0():
    # Only the first row differs, and the float32 sums over 100,000 rows lose more than it adds.
    x = np.tile(np.float32([1111, 777.7, 3e5]), (100_000, 1))
    x[0] = 0
    found = passed(models.two_layers(2), [x])
    assert np.isfinite(found["bn_y"].values.var).all()


def test_stored_statistics_are_used_when_asked_for():
    batches = models.cut(models.images(9), (4, 5))
    p = models.parameters()
    found = passed(models.two_layers(training=True), batches, normalize="stored")
    stored = models.Seen(p["m"], p["v"])
    inner = [models.mixed(models.normalized(x, stored, p["s"], p["b"]), p["w"]) for x in batches]
    assert largest_error(found, [models.Seen.of(batches), models.Seen.of(inner)]) < 2e-6


def test_nodes_that_are_not_asked_for_keep_their_statistics():
    batches = [models.images(6)]
    p = models.parameters()
    found = passed(models.two_layers(), batches, ["bn_y"])
    stored = models.Seen(p["m"], p["v"])
    inner = models.mixed(models.normalized(batches[0], stored, p["s"], p["b"]), p["w"])
    assert found.keys() == {"bn_y"}
    assert models.error(found["bn_y"].values, models.Seen.of([inner])) < 2e-6


def test_nodes_in_training_mode_that_are_not_asked_for_normalize_as_they_do():
    batches = models.cut(models.images(9), (4, 5))
    found = passed(models.two_layers(training=True), batches, ["bn_y"], normalize="stored")
    assert models.error(found["bn_y"].values, models.batch_rule(batches)[1]) < 2e-6


@pytest.mark.parametrize("normalize", ["batch", "stored"])
def test_nothing_runs_in_training_mode_and_no_large_output_is_left(normalize):
    targets = choose_targets(models.two_layers(training=True), ["bn_y"])
    model, taps = instrument(targets, normalize)
    assert {norm.mode for norm in find_nodes(model)} <= {"eval"}
    assert len(model.graph.outputs) == 4 * len(taps)
    # The last node's own result is of no use, so nothing computes it.
    assert all(node.op_type != "BatchNormalization" for node in model.graph)


def test_what_cannot_be_spelled_out_is_an_error():
    arrays = {name: np.ones((3, 4), np.float32) for name in "sbmv"}
    nodes = [
        BN("x", "h", opset=7, training=True, spatial=0),
        BN("h", "y", opset=7, inputs=models.SECOND),
    ]
    arrays = {**models.parameters(), **arrays}
    model = onnx_models.make_model(nodes, arrays=arrays, opset=7, shape=("N", 3, 4))
    with pytest.raises(ModelError, match=r"'bn_h' is in training mode.*spatial=0"):
        BatchPass(choose_targets(model, ["bn_y"]))


def test_all_uses_of_a_layer_count():
    nodes = [BN("x", "h"), helper.make_node("Relu", ["h"], ["r"]), BN("r", "y")]
    x = models.images(6)
    found = passed(onnx_models.make_model(nodes, shape=("N", 3, "H", "W")), [x])
    p = models.parameters()
    inner = np.maximum(models.normalized(x, models.Seen.of([x]), p["s"], p["b"]), 0)
    assert found.keys() == {"bn_h"}
    assert models.error(found["bn_h"].values, models.Seen.of([x, inner])) < 2e-6
    assert found["bn_h"].samples == 6  # each has values of both uses


def test_rows_made_of_one_sample_are_one_sample():
    """Frames of a clip: (N, 2, 3, H) -> (2 N, 3, H) -> batch norm."""
    nodes = [helper.make_node("Reshape", ["x", "frames"], ["f"]), BN("f", "y")]
    arrays = {**onnx_models.parameters(), "frames": np.array([-1, 3, 5])}
    model = onnx_models.make_model(nodes, arrays=arrays, shape=("N", 2, 3, 5))
    x = np.random.default_rng(0).normal(size=(6, 2, 3, 5)).astype(np.float32)
    (seen,) = passed(model, [x]).values()
    assert (seen.samples, seen.values.count) == (6, 60)
    means = x.astype(np.float64).mean(axis=(1, 3))
    assert np.allclose(seen.mean_error, means.std(axis=0, ddof=1) / np.sqrt(6), rtol=1e-5)


def test_a_model_of_batch_size_1():
    batches = models.cut(models.images(5), (1,) * 5)
    found = passed(models.two_layers(batch=1), batches)
    assert largest_error(found, models.batch_rule(batches)) < 5e-6
    assert found["bn_h"].samples == 5


def test_it_can_be_pickled_before_and_after_use():
    run = BatchPass(choose_targets(models.two_layers()), num_threads=1)
    x = models.images(4)
    copies = [pickle.loads(pickle.dumps(run))]
    expected = run({"x": x}, 0)["bn_y"].to_arrays()
    copies.append(pickle.loads(pickle.dumps(run)))
    copies.append(pickle.loads(pickle.dumps(copies[0])))
    for copy in copies:
        found = copy({"x": x}, 0)["bn_y"].to_arrays()
        assert all((found[name] == expected[name]).all() for name in expected)


def test_weights_in_a_file_go_along(tmp_path):
    model = ir.from_proto(models.two_layers())
    ir.save(model, tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    run = BatchPass(choose_targets(tmp_path / "model.onnx"), num_threads=1)
    x = models.images(4)
    expected = run({"x": x}, 0)["bn_y"].values.mean
    sent = pickle.dumps(run)
    for file in tmp_path.iterdir():
        file.unlink()
    assert (pickle.loads(sent)({"x": x}, 0)["bn_y"].values.mean == expected).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_is_named_with_node_and_samples(value):
    run = BatchPass(choose_targets(models.two_layers()), num_threads=1)
    x = models.images(4)
    x[2, 1] = value
    with pytest.raises(
        DataError, match=r"batch of samples 8 to 11: .*'bn_h', in 1 of its 3 channels"
    ):
        run({"x": x}, 8)


def test_another_way_to_normalize_is_refused():
    with pytest.raises(ValueError, match="one of 'batch', 'stored', got 'running'"):
        BatchPass(choose_targets(models.two_layers()), normalize="running")


def test_the_model_is_not_changed(tmp_path):
    targets = choose_targets(models.two_layers())
    save(targets.model, tmp_path / "before.onnx")
    BatchPass(targets)({"x": models.images(3)}, 0)
    save(targets.model, tmp_path / "after.onnx")
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()


def test_it_is_fvcores_rule():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    batches = models.cut(models.images(20), (7, 9, 4))
    p = {name: torch.from_numpy(array) for name, array in models.parameters().items()}
    first, second = torch.nn.BatchNorm2d(3, momentum=1.0), torch.nn.BatchNorm2d(3, momentum=1.0)
    for norm, names in ((first, ("s", "b")), (second, ("s2", "b2"))):
        for parameter, name in zip((norm.weight, norm.bias), names, strict=True):
            parameter.data.copy_(p[name])
    mix = torch.nn.Conv2d(3, 3, 1, bias=False)
    mix.weight.data.copy_(p["w"])
    network = torch.nn.Sequential(first, torch.nn.ReLU(), mix, second).train()
    pooled = {norm: (0.0, 0.0, 0) for norm in (first, second)}
    for x in batches:
        with torch.no_grad():
            network(torch.from_numpy(x))
        for norm, (mean, square, total) in pooled.items():
            # update_bn_stats of fvcore 0.1.5: momentum 1, Bessel's correction undone, and the
            # means of x and x² over batches weighed by their number of values.
            size = x.size // 3
            var = norm.running_var.double() * (size - 1) / size
            seen = norm.running_mean.double()
            share = size / (total + size)
            mean = mean + (seen - mean) * share
            square = square + (seen**2 + var - square) * share
            pooled[norm] = (mean, square, total + size)
    expected = [
        models.Seen(mean.numpy(), (square - mean**2).numpy()) for mean, square, _ in pooled.values()
    ]
    assert largest_error(passed(models.two_layers(), batches), expected) < 2e-6
