"""Method "sequential": each layer measured under the corrected ones, whatever the batches."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import pytest
import recalibration_models as models
from onnx import helper

from cbn.export import DataError, ModelError
from cbn.export.opsets import newest_opset
from cbn.export.recalibration.measure.checkpoint import Checkpoint, CheckpointError
from cbn.export.recalibration.measure.sequential import sweep
from cbn.export.recalibration.measure.stages import plan_stages
from cbn.export.recalibration.measure.targets import choose_targets

BN = onnx_models.batch_norm_node


def observed(target, seen):
    """Correct to what was seen, with nothing of the stored statistics."""
    return seen.values.mean, seen.values.var


def swept(model, batches, nodes=None, **options):
    options = {"correct": observed, "num_threads": 1, **options}
    return sweep(choose_targets(model, nodes), models.Batches(batches), **options)


def largest_error(found, expected):
    return max(
        models.error(found[name].values, seen)
        for name, seen in zip(("bn_h", "bn_y"), expected, strict=True)
    )


def bits(found):
    return {n: [a.tobytes() for a in seen.to_arrays().values()] for n, seen in found.items()}


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1,) * 12])
def test_every_split_gives_the_statistics_of_all_data(rank, sizes):
    x = models.images(12, rank)
    found = swept(models.two_layers(rank), models.cut(x, sizes))
    assert largest_error(found, models.sequential_rule(x)) < 1e-6
    assert found["bn_y"].samples == 12


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 18, newest_opset()])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_every_opset_in_either_mode(opset, training):
    x = models.images(6)
    found = swept(models.two_layers(opset=opset, training=training), models.cut(x, (2, 4)))
    assert largest_error(found, models.sequential_rule(x)) < 1e-6


def test_doubles_are_computed_in_double():
    x = models.images(9, 2, dtype="float64")
    found = swept(models.two_layers(2, dtype="float64"), models.cut(x, (4, 5)))
    assert largest_error(found, models.sequential_rule(x, "float64")) < 1e-13


def test_halves_go_between_two_layers_as_halves():
    nodes = [BN("x", "h"), helper.make_node("Relu", ["h"], ["r"]), BN("r", "y")]
    model = onnx_models.make_model(nodes, dtype="float16")
    model.graph.node[2].input[3:] = ["m2", "v2"]
    for name, array in (("m2", np.zeros(3)), ("v2", np.ones(3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f2"), name))
    x = models.images(8, 3, dtype="float16")
    found = swept(model, [x])
    p = onnx_models.parameters(dtype="float16")
    inner = np.maximum(models.normalized(x, models.Seen.of([x]), p["s"], p["b"]), 0)
    assert models.error(found["bn_h"].values, models.Seen.of([x])) < 1e-12
    assert models.error(found["bn_y"].values, models.Seen.of([inner])) < 1e-3


def test_later_layers_are_measured_under_what_correct_gives():
    x = models.images(8)
    other = models.Seen(np.array([0.5, 0.0, -1.0]), np.array([2.0, 1.0, 0.25]))
    asked = []

    def correct(target, seen):
        asked.append((target.name, seen.values.count))
        return other.mean, other.var

    found = swept(models.two_layers(), models.cut(x, (3, 5)), correct=correct)
    p = models.parameters()
    inner = models.mixed(models.normalized(x, other, p["s"], p["b"]), p["w"])
    assert asked == [("bn_h", 8 * 20)]  # the last one's are not needed
    assert models.error(found["bn_y"].values, models.Seen.of([inner])) < 1e-6


def test_corrected_statistics_are_rounded_as_the_model_stores_them():
    x = models.images(8)
    exact = models.Seen(np.array([1 / 3, 0.1, -0.7]), np.array([1 / 3, 0.7, 0.1]))
    stored = models.Seen(*(a.astype("f2").astype("f8") for a in (exact.mean, exact.var)))
    model = models.two_layers()
    for name in "mv":
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        half = onnx.numpy_helper.to_array(tensor).astype("f2")
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, name))
    found = swept(model, [x], correct=lambda *_: (exact.mean, exact.var))
    p = models.parameters()
    inner = models.mixed(models.normalized(x, stored, p["s"], p["b"]), p["w"])
    assert models.error(found["bn_y"].values, models.Seen.of([inner])) < 1e-6


def residual():
    """Branches of unlike depth that meet, with a batch norm after each step.

    x -> bn_h;  h -> Neg -> bn_i -> Abs -> bn_j;  x -> Exp -> bn_k;  h + j + k -> bn_y
    """
    own = {name: ["s", "b", f"m{name}", f"v{name}"] for name in "hijky"}
    nodes = [
        BN("x", "h", inputs=own["h"]),
        helper.make_node("Neg", ["h"], ["n"]),
        BN("n", "i", inputs=own["i"]),
        helper.make_node("Abs", ["i"], ["e"]),
        BN("e", "j", inputs=own["j"]),
        helper.make_node("Exp", ["x"], ["p"]),
        BN("p", "k", inputs=own["k"]),
        helper.make_node("Sum", ["h", "j", "k"], ["t"]),
        BN("t", "y", inputs=own["y"]),
    ]
    arrays = {name: onnx_models.parameters()[name] for name in "sb"}
    for name in own:
        arrays |= {f"m{name}": np.zeros(3, "f"), f"v{name}": np.ones(3, "f")}
    return onnx_models.make_model(nodes, arrays=arrays)


def residual_rule(x):
    """What NumPy finds in `residual`: the value that each node reads."""
    p = onnx_models.parameters()
    x = x.astype(np.float64)

    def norm(value):
        return models.normalized(value, models.Seen.of([value]), p["s"], p["b"])

    h, k = norm(x), norm(np.exp(x))
    i = norm(-h)
    j = norm(np.abs(i))
    return {"bn_h": x, "bn_i": -h, "bn_j": np.abs(i), "bn_k": np.exp(x), "bn_y": h + j + k}


def test_a_stage_holds_what_is_needed_and_no_more():
    stages = plan_stages(choose_targets(residual())).stages
    assert [set(stage.measured) for stage in stages] == [
        {"bn_h", "bn_k"},
        {"bn_i"},
        {"bn_j"},
        {"bn_y"},
    ]
    # bn_k waits for the sum, and its input is what is kept.
    assert [{n.y for n in stage.normalized} for stage in stages] == [
        set(),
        {"h"},
        {"i"},
        {"j", "k"},
    ]
    assert [set(stage.kept) for stage in stages] == [
        {"x", "p"},
        {"h", "p", "n"},
        {"h", "p", "e"},
        set(),
    ]
    made = [output.name for stage in stages for node in stage.nodes for output in node.outputs]
    assert sorted(made) == ["e", "n", "p", "t"]  # each once


@pytest.mark.parametrize("memory", [0, 3000, 2**30])
def test_branches_wait_for_each_other(memory, tmp_path):
    x = models.images(11, 3)
    found = swept(residual(), models.cut(x, (4, 4, 3)), memory=memory, scratch=tmp_path)
    for name, value in residual_rule(x).items():
        assert models.error(found[name].values, models.Seen.of([value])) < 2e-6
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_memory_does_not_change_a_bit():
    batches = models.cut(models.images(11, 3), (4, 4, 3))
    assert bits(swept(residual(), batches, memory=0)) == bits(swept(residual(), batches))


def test_the_given_arrays_are_not_written_to():
    nodes = [BN("x", "h"), helper.make_node("Relu", ["h"], ["r"]), BN("r", "y")]
    model = onnx_models.make_model(nodes)
    x = models.images(6, 3)
    before = x.copy()
    swept(model, [x])
    assert (x == before).all()


def test_batch_norms_right_after_each_other():
    x = models.images(6, 3)
    third = ("s", "b", "m3", "v3")
    nodes = [BN("x", "h"), BN("h", "k", inputs=models.SECOND), BN("k", "y", inputs=third)]
    arrays = {**models.parameters(), "m3": np.zeros(3, "f"), "v3": np.ones(3, "f")}
    found = swept(onnx_models.make_model(nodes, arrays=arrays), models.cut(x, (2, 4)))
    h = models.normalized(x, models.Seen.of([x]), arrays["s"], arrays["b"])
    k = models.normalized(h, models.Seen.of([h]), arrays["s2"], arrays["b2"])
    assert models.error(found["bn_k"].values, models.Seen.of([h])) < 1e-6
    assert models.error(found["bn_y"].values, models.Seen.of([k])) < 1e-6


@pytest.mark.parametrize("through", ["h", "k"], ids=["next stage", "later stage"])
def test_what_a_batch_norm_reads_may_be_read_by_others(through):
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        BN("n", "h"),
        BN("h", "k", inputs=models.SECOND),
        helper.make_node("Sum", ["n", through], ["t"]),
        BN("t", "y", inputs=("s", "b", "m3", "v3")),
    ]
    arrays = {**models.parameters(), "m3": np.zeros(3, "f"), "v3": np.ones(3, "f")}
    n = -models.images(6, 3)
    found = swept(onnx_models.make_model(nodes, arrays=arrays), models.cut(-n, (2, 4)))
    h = models.normalized(n, models.Seen.of([n]), arrays["s"], arrays["b"])
    k = models.normalized(h, models.Seen.of([h]), arrays["s2"], arrays["b2"])
    total = n + (h if through == "h" else k)
    assert models.error(found["bn_y"].values, models.Seen.of([total])) < 1e-6


def test_what_a_relu_reads_may_be_measured_too():
    nodes = [
        BN("x", "h"),
        BN("h", "k", inputs=models.SECOND),
        helper.make_node("Relu", ["h"], ["r"]),
        BN("r", "y", inputs=("s", "b", "m3", "v3")),
    ]
    arrays = {**models.parameters(), "m3": np.zeros(3, "f"), "v3": np.ones(3, "f")}
    x = models.images(6, 3)
    found = swept(onnx_models.make_model(nodes, arrays=arrays), models.cut(x, (2, 4)))
    h = models.normalized(x, models.Seen.of([x]), arrays["s"], arrays["b"])
    assert models.error(found["bn_k"].values, models.Seen.of([h])) < 1e-6
    assert models.error(found["bn_y"].values, models.Seen.of([np.maximum(h, 0)])) < 1e-6


def test_a_branch_reads_values_of_earlier_stages():
    """Values that only the body of an If reads are kept for it, and so are its weights."""

    def body(name, op_type):
        node = helper.make_node(op_type, ["h", "b"], [name])
        output = helper.make_tensor_value_info(name, 1, None)
        return helper.make_graph([node], name, [], [output])

    nodes = [
        BN("x", "h"),
        helper.make_node("Neg", ["h"], ["n"]),
        BN("n", "k", inputs=models.SECOND),
        helper.make_node(
            "If", ["c"], ["z"], then_branch=body("t", "Mul"), else_branch=body("e", "Add")
        ),
        helper.make_node("Add", ["z", "k"], ["w2"]),
        BN("w2", "y", inputs=("s", "b", "m3", "v3")),
    ]
    arrays = {**models.parameters(), "m3": np.zeros(3, "f"), "v3": np.ones(3, "f")}
    arrays["b"] = np.full(3, 2, "f")
    model = onnx_models.make_model(
        nodes, arrays=arrays, inputs=[onnx_models.flag("c")], shape=("N", 3)
    )
    x = models.images(9, 2)

    class WithFlag(models.Batches):
        def numbered(self, start=0):
            for feeds, first in super().numbered(start):
                yield {**feeds, "c": np.array(True)}, first

    source = WithFlag(models.cut(x, (4, 5)))
    found = sweep(choose_targets(model), source, correct=observed, num_threads=1)
    h = models.normalized(x, models.Seen.of([x]), arrays["s"], arrays["b"])
    k = models.normalized(-h, models.Seen.of([-h]), arrays["s2"], arrays["b2"])
    assert models.error(found["bn_y"].values, models.Seen.of([h * 2 + k])) < 1e-6


def test_scale_that_the_model_computes():
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["s"], axes=[0, 2], keepdims=0),
        BN("x", "h"),
        BN("h", "y", inputs=models.SECOND),
    ]
    arrays = models.parameters()
    del arrays["s"]
    x = models.images(6, 3)
    found = swept(onnx_models.make_model(nodes, arrays=arrays), [x])
    seen = models.Seen.of([x])
    inner = models.normalized(x, seen, x.max(axis=(0, 2)), arrays["b"])
    assert models.error(found["bn_y"].values, models.Seen.of([inner])) < 1e-6


def test_constants_that_the_model_computes_are_made_where_they_are_needed():
    model = models.two_layers()
    keep = [tensor for tensor in model.graph.initializer if tensor.name not in ("s", "v2")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(keep)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3]), "three"))
    fill = onnx.numpy_helper.from_array(np.array([0.5], "f"))
    made = [helper.make_node("ConstantOfShape", ["three"], [n], value=fill) for n in ("s", "v2")]
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    x = models.images(6)
    found = swept(model, models.cut(x, (3, 3)))
    p = models.parameters()
    half = np.full(3, 0.5)
    inner = models.mixed(models.normalized(x, models.Seen.of([x]), half, p["b"]), p["w"])
    assert models.error(found["bn_y"].values, models.Seen.of([inner])) < 1e-6


def test_uses_at_two_depths_end_with_what_all_gave():
    nodes = [BN("x", "h"), helper.make_node("Relu", ["h"], ["r"]), BN("r", "y")]
    x = models.images(6, 3)
    found = swept(onnx_models.make_model(nodes), models.cut(x, (2, 4)))
    p = onnx_models.parameters()
    inner = np.maximum(models.normalized(x, models.Seen.of([x]), p["s"], p["b"]), 0)
    assert found.keys() == {"bn_h"}
    assert models.error(found["bn_h"].values, models.Seen.of([x, inner])) < 1e-6
    assert found["bn_h"].samples == 12


def test_nodes_that_are_not_asked_for_keep_their_statistics():
    x = models.images(6)
    found = swept(models.two_layers(), models.cut(x, (3, 3)), ["bn_y"])
    p = models.parameters()
    inner = models.mixed(models.normalized(x, models.Seen(p["m"], p["v"]), p["s"], p["b"]), p["w"])
    assert found.keys() == {"bn_y"}
    assert models.error(found["bn_y"].values, models.Seen.of([inner])) < 1e-6


def test_progress_is_told_stage_by_stage():
    told = []
    batches = models.cut(models.images(6), (2, 4))
    swept(models.two_layers(), batches, progress=lambda *step: told.append(step))
    assert told == [(f"stage {k} of 2", done, 2) for k in (1, 2) for done in (1, 2)]


def test_what_is_not_finite_is_named_with_node_and_samples():
    x = models.images(6)
    x[4, 2] = np.inf
    with pytest.raises(
        DataError, match=r"batch of samples 3 to 5: .*'bn_h', in 1 of its 3 channels"
    ):
        swept(models.two_layers(), models.cut(x, (3, 3)))


def test_a_node_that_no_data_reaches_is_named():
    model = onnx_models.make_model([BN("s2d", "h"), helper.make_node("Add", ["x", "h"], ["y"])])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 3), "f"), "s2d"))
    with pytest.raises(ModelError, match="nothing of the data reaches BatchNormalization 'bn_h'"):
        swept(model, [models.images(3, 3)])


def test_a_value_between_stages_that_is_no_tensor_is_named():
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["q"], axis=0),
        BN("x", "h"),
        helper.make_node("SequenceInsert", ["q", "h"], ["r"]),
        helper.make_node("ConcatFromSequence", ["r"], ["z"], axis=0),
        BN("z", "y", inputs=models.SECOND),
    ]
    model = onnx_models.make_model(nodes, arrays=models.parameters())
    with pytest.raises(ModelError, match="value 'q' is no tensor"):
        swept(model, [models.images(3, 3)])


def test_a_value_of_bfloat16_is_named():
    kind = np.dtype(ml_dtypes.bfloat16)
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=onnx.TensorProto.BFLOAT16),
        BN("x16", "h16"),
        helper.make_node("Cast", ["h16"], ["h"], to=onnx.TensorProto.FLOAT),
        BN("h", "y", inputs=models.SECOND),
    ]
    arrays = models.parameters()
    arrays |= {name: arrays[name].astype(kind) for name in "sbmv"}
    model = onnx_models.make_model(nodes, arrays=arrays, shape=("N", 3, "H", "W"))
    with pytest.raises(ModelError, match=r"value 'x16' is of bfloat16.*method 'batch' need not"):
        swept(model, [models.images(3)])


class Stop:
    """Raises on its n-th call."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *_):
        self.calls -= 1
        if not self.calls:
            raise KeyboardInterrupt


@pytest.mark.parametrize("call", [1, 5])
def test_an_interruption_leaves_no_files(call, tmp_path):
    batches = models.cut(models.images(11, 3), (4, 4, 3))
    with pytest.raises(KeyboardInterrupt):
        swept(residual(), batches, memory=0, scratch=tmp_path, progress=Stop(call))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [1, 3, 4, 8, 12])
def test_an_interrupted_sweep_goes_on_to_the_same_bits(call, tmp_path):
    batches = models.cut(models.images(11, 3), (4, 4, 3))
    path = tmp_path / "run"
    done = []

    def run(progress):
        with Checkpoint.open(path, "key") as checkpoint:
            return swept(residual(), batches, progress=progress, checkpoint=checkpoint)

    with pytest.raises(KeyboardInterrupt):
        run(Stop(call))
    found = run(lambda *step: done.append(step))
    assert len(done) == 4 * 3 - call  # no batch is run twice
    assert bits(found) == bits(swept(residual(), batches))
    assert not (tmp_path / "run.tensors").exists()


def test_a_crash_goes_back_to_what_was_written(tmp_path):
    batches = models.cut(models.images(11, 3), (4, 4, 3))
    path = tmp_path / "run"
    crashed = Checkpoint.open(path, "key", interval=1e9)  # writes when a stage is through
    with pytest.raises(KeyboardInterrupt):
        swept(residual(), batches, progress=Stop(8), checkpoint=crashed)
    written = Checkpoint.open(path, "key")
    assert (written.stage, written.load()[0]) == (2, 0)
    with Checkpoint.open(path, "key") as checkpoint:
        found = swept(residual(), batches, checkpoint=checkpoint)
    assert bits(found) == bits(swept(residual(), batches))


def test_tensors_that_are_gone_are_an_error_that_says_so(tmp_path):
    batches = models.cut(models.images(11, 3), (4, 4, 3))
    path = tmp_path / "run"
    with (
        pytest.raises(KeyboardInterrupt),
        Checkpoint.open(path, "key") as checkpoint,
    ):
        swept(residual(), batches, progress=Stop(5), checkpoint=checkpoint)
    for file in (tmp_path / "run.tensors").iterdir():
        file.unlink()
    with (
        pytest.raises(CheckpointError, match=r"run\.tensors lacks .* delete both to start anew"),
        Checkpoint.open(path, "key") as checkpoint,
    ):
        swept(residual(), batches, checkpoint=checkpoint)


def test_a_folder_of_something_else_beside_the_checkpoint_stays(tmp_path):
    (tmp_path / "run.tensors").mkdir()
    (tmp_path / "run.tensors" / "thesis.npy").write_text("mine")
    with (
        pytest.raises(CheckpointError, match=r"run\.tensors: holds files of something else"),
        Checkpoint.open(tmp_path / "run", "key") as checkpoint,
    ):
        swept(residual(), [models.images(4, 3)], checkpoint=checkpoint)
    assert (tmp_path / "run.tensors" / "thesis.npy").read_text() == "mine"


def test_tensors_of_another_run_are_not_taken(tmp_path):
    batches = models.cut(models.images(11, 3), (4, 4, 3))
    path = tmp_path / "run"
    with (
        pytest.raises(KeyboardInterrupt),
        Checkpoint.open(path, "key") as checkpoint,
    ):
        swept(residual(), batches, progress=Stop(8), checkpoint=checkpoint)
    path.unlink()
    other = models.cut(models.images(6, 3, seed=1), (2, 4))
    with Checkpoint.open(path, "key") as checkpoint:
        found = swept(residual(), other, checkpoint=checkpoint)
    assert bits(found) == bits(swept(residual(), other))
    assert not (tmp_path / "run.tensors").exists()
