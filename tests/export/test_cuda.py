"""CUDA: what is checked of it by pretending, and, marked ``cuda``, what a GPU has to show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
import recalibration_models
from pretended_cuda import CPU, CUDA

import cbn
from cbn import export
from cbn.export import opsets, tolerance
from cbn.export.bound import BoundSession
from cbn.export.providers import uses_cuda, uses_tf32
from cbn.export.sessions import make_session, run_session, why_no_cuda

ROOT = Path(__file__).parents[2]
FLOAT32 = np.dtype(np.float32)
TF32 = [(CUDA, {"use_tf32": 1})]


def layer(training: bool = False) -> cbn.BatchNorm2d:
    bn = cbn.BatchNorm2d(3)
    bn(np.random.default_rng(0).normal(3, 2, (4, 3, 5, 6)).astype(np.float32))
    return bn if training else bn.eval()


def training_model() -> onnx.ModelProto:
    return onnx_models.single(training=True, outputs=("y", "y_mean", "y_var"))


def convolution() -> onnx.ModelProto:
    arrays = {**onnx_models.parameters(), "w": np.ones((3, 3, 1), np.float32)}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        onnx_models.batch_norm_node(x="c"),
    ]
    return onnx_models.make_model(nodes, arrays=arrays)


def raise_epsilon(model: onnx.ModelProto) -> None:
    """What cuDNN did before 7.5."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = max(attribute.f, 1e-5)


def test_the_short_names_turn_tf32_off(pretend):
    asked = pretend().asked
    make_session(onnx_models.single(), "cuda")
    make_session(onnx_models.single(), "auto")
    assert asked == [[(CUDA, {"use_tf32": "0"})], [(CUDA, {"use_tf32": "0"}), CPU]]


def test_provider_options_are_passed_through(pretend):
    asked = pretend().asked
    make_session(onnx_models.single(), [(CUDA, {"device_id": 1, "use_tf32": 1})])
    assert asked == [[(CUDA, {"device_id": 1, "use_tf32": 1})]]


@pytest.mark.parametrize(
    ("providers", "tf32"),
    [
        ("cpu", False),
        ("cuda", False),
        ("auto", False),
        ([CPU], False),
        ([CUDA], True),
        (TF32, True),
        ([(CUDA, {"use_tf32": 0}), CPU], False),
        ([(CUDA, {"use_tf32": "0"})], False),
    ],
)
def test_only_a_list_may_leave_tf32_on(providers, tf32):
    assert uses_tf32(providers) is tf32


def test_auto_is_cuda_where_onnxruntime_has_it(pretend):
    assert not uses_cuda("cpu")
    pretend()
    assert uses_cuda("auto")
    assert uses_cuda([CUDA])


@pytest.mark.parametrize("providers", ["cuda", [CUDA], [CUDA, CPU], TF32])
def test_training_mode_is_refused_before_a_session_is_made(pretend, providers):
    asked = pretend().asked
    with pytest.raises(export.ModelError, match=r"onnxruntime#16867.*: bn_y\. cbn lower spells"):
        make_session(training_model(), providers)
    assert asked == []


def test_auto_takes_the_cpu_for_what_cuda_refuses(pretend):
    asked = pretend().asked
    make_session(training_model(), "auto")
    assert asked == [[CPU]]


def test_crosscheck_names_the_way_out(pretend):
    pretend()
    with pytest.raises(export.ModelError, match="cbn lower"):
        export.crosscheck(training_model(), providers="cuda")


def test_a_lowered_model_is_proved_and_runs(pretend):
    pretend()
    result = export.lower(training_model(), providers="cuda")
    assert result.ok, str(result)
    session = make_session(result.model, "cuda")
    assert CUDA in session.get_providers()
    assert "#16867" in result.proof.reference


@pytest.mark.parametrize("training", [False, True])
def test_layers_are_checked_in_both_modes(pretend, training):
    pretend()
    report = export.crosscheck(layer(training), providers="cuda")
    assert report, str(report)
    assert {row.provider for row in report.rows} == {CUDA}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nodes_on_cuda_have_the_tolerance_of_cuda(pretend, dtype):
    pretend()
    model = onnx_models.single(dtype=dtype)
    (there, _), (here, _) = (export.crosscheck(model, providers=p).rows for p in ("cuda", "cpu"))
    assert (there.provider, there.tolerance) == (CUDA, tolerance.EVAL_CUDA_ULP)
    assert (here.provider, here.tolerance) == (CPU, tolerance.EVAL_ULP)


def test_an_epsilon_that_cuda_raises_is_found(pretend):
    arrays = onnx_models.parameters()
    arrays["v"] = np.full(3, 1e-4, np.float32)
    node = onnx_models.batch_norm_node(epsilon=1e-7)
    model = onnx_models.make_model([node], arrays=arrays)
    pretend()
    assert export.crosscheck(model, providers="cuda")
    pretend(change=raise_epsilon)
    node_row, *_ = export.crosscheck(model, providers="cuda").rows
    assert not node_row.ok
    assert node_row.max_ulp_error > 1000


@pytest.mark.parametrize(
    ("model", "providers", "wide"),
    [
        (convolution(), TF32, True),
        (convolution(), "cuda", False),
        (onnx_models.single(), TF32, False),
    ],
)
def test_only_tf32_widens_the_tolerance_of_outputs(pretend, model, providers, wide):
    usual = [row.tolerance for row in export.crosscheck(model).rows if row.kind == "output"]
    pretend()
    rows = export.crosscheck(model, providers=providers).rows
    found = [row.tolerance for row in rows if row.kind == "output"]
    assert found == ([tolerance.tf32_output_ulp()] if wide else usual)


def test_tf32_may_take_a_64th_of_the_largest_value():
    assert tolerance.tf32_output_ulp() * float(np.finfo(np.float32).eps) == 1 / 64


def test_why_there_is_no_cuda_is_said(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert CUDA in why_no_cuda()


def test_there_is_cuda_where_a_model_runs_on_it(pretend):
    pretend()
    assert why_no_cuda() == ""


@pytest.mark.parametrize("method", ["batch", "sequential"])
def test_recalibration_goes_where_it_is_asked_to(pretend, method):
    asked = pretend(on_cpu={"Shape", "Gather", "Concat"}).asked  # as onnxruntime does with shapes
    found = recalibrated("cuda", method)
    assert [(CUDA, {"use_tf32": "0"})] in asked
    assert apart(found, recalibrated("cpu", method)) == 0


def recalibrated(providers: str, method: str) -> list[recalibration_models.Seen]:
    """Means and variances that two layers get from seeded samples."""
    x = recalibration_models.images(64)
    model = recalibration_models.two_layers()
    options = {"method": method, "prior": 0, "held_out": 0, "batch_size": 16}
    after = export.recalibrate(model, {"x": x}, providers=providers, **options).model
    return [
        recalibration_models.Seen(node.mean.array.astype(float), node.var.array.astype(float))
        for node in export.find_nodes(after)
    ]


def apart(
    found: list[recalibration_models.Seen], expected: list[recalibration_models.Seen]
) -> float:
    """The largest difference: of means in deviations, of variances relative."""
    return max(map(recalibration_models.error, found, expected))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(cbn.__file__).parents[1]), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.cuda", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_benchmark_says_what_it_lacks():
    if not why_no_cuda():
        pytest.skip("there is a GPU here")
    done = bench("--only", "accuracy")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"python -m benchmarks.cuda cannot run here: asked for {CUDA}")
    assert done.stderr.count("\n") == 1


def test_throughput_is_a_part_of_the_copys(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import cuda

    calls = dict.fromkeys((cuda.COPY, cuda.OURS), lambda: None)
    seconds = cuda.take_turns(calls, 2, lambda: None)
    assert set(seconds) == set(calls)
    assert all(value > 0 for value in seconds.values())
    rates = {cuda.COPY: 2000.0, cuda.OURS: 1900.0}
    text = cuda.format_throughput([cuda.Throughput((64, 3, 8, 8), "float32", 105.2, rates)])
    assert text.splitlines()[-1].split() == ["64x3x8x8", "float32", "105", "2000", "1900", "0.95"]


@pytest.fixture
def cuda_accuracy(monkeypatch):
    """The module of the benchmark that measures errors: one definition of the cases."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import cuda_accuracy

    return cuda_accuracy


def most(mode: str, dtype: str, shape: tuple[int, ...]) -> float:
    """What an output may be away from float64, in ULP."""
    if mode == "eval":
        return tolerance.in_type(tolerance.EVAL_CUDA_ULP - tolerance.CBN_ULP, np.dtype(dtype))
    depth = tolerance.summation_depth(shape, FLOAT32)
    return tolerance.in_type(tolerance.training_ulp(depth), np.dtype(dtype))


@pytest.mark.parametrize("mode", ["eval", "training"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_cases_of_the_benchmark_hold_on_the_cpu(cuda_accuracy, mode, dtype):
    for rank, shape in cuda_accuracy.SIZES.items():
        result = cuda_accuracy.measure(mode, dtype, rank, 7 + 4 * rank, ["cpu"])
        assert 0 < result.max_ulp["cpu"] <= most(mode, dtype, shape), result


def test_the_table_says_what_does_not_run(cuda_accuracy):
    errors = cuda_accuracy.accuracy(["cpu"], [7])[:1]
    errors.append(cuda_accuracy.Error("eval", "float32", 2, 8, {"cpu": None}, {"cpu": "a reason"}))
    text = cuda_accuracy.format_errors(errors)
    assert "(1 opsets do not run)" in text
    assert text.endswith("cpu: a reason")


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["eval", "training"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_every_opset_is_right_on_cuda(cuda_accuracy, mode, dtype, rank):
    limit = most(mode, dtype, cuda_accuracy.SIZES[rank])
    for opset in range(7, opsets.newest_opset() + 1):
        result = cuda_accuracy.measure(mode, dtype, rank, opset, ["cuda"])
        assert result.max_ulp["cuda"] is not None, result.reasons
        assert result.max_ulp["cuda"] <= limit, result


@pytest.mark.cuda
@pytest.mark.parametrize("training", [False, True])
def test_crosscheck_holds_on_cuda(training):
    report = export.crosscheck(layer(training), providers="cuda")
    assert report, str(report)
    assert all(CUDA in row.provider for row in report.rows)


@pytest.mark.cuda
@pytest.mark.parametrize("providers", ["cuda", TF32])
def test_tf32_keeps_to_its_tolerance_on_cuda(providers):
    report = export.crosscheck(convolution(), providers=providers)
    assert report, str(report)


@pytest.mark.cuda
@pytest.mark.parametrize("epsilon", [1e-5, 1e-7, 1e-12])
def test_epsilon_is_not_raised_on_cuda(epsilon):
    arrays = onnx_models.parameters()
    arrays["v"] = np.full(3, 1e-4, np.float32)
    node = onnx_models.batch_norm_node(epsilon=epsilon)
    report = export.crosscheck(onnx_models.make_model([node], arrays=arrays), providers="cuda")
    assert report, str(report)


@pytest.mark.cuda
def test_a_lowered_training_model_is_proved_on_cuda():
    result = export.lower(training_model(), providers="cuda")
    assert result.ok, str(result)


@pytest.mark.cuda
def test_onnxruntime_still_refuses_training_mode_on_cuda():
    """When it no longer does, the refusal beforehand has to go."""
    content = training_model().SerializeToString()
    with pytest.raises(Exception, match=r"[Tt]raining mode"):
        onnxruntime.InferenceSession(content, providers=[CUDA])


@pytest.mark.cuda
def test_an_operator_that_cuda_lacks_is_named():
    node = onnx.helper.make_node("Det", ["x"], ["y"], name="determinant")
    nodes = [node, onnx.helper.make_node("Relu", ["x"], ["z"], name="relu")]
    model = onnx_models.make_model(nodes, shape=(2, 3, 3), outputs=("y", "z"))
    with pytest.raises(export.ProviderError, match="1 of 2 nodes on the CPU instead: Det"):
        make_session(model, "cuda", optimize=False)


@pytest.mark.cuda
@pytest.mark.parametrize("wait", [True, False])
def test_inputs_and_outputs_stay_on_the_gpu(wait):
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    bound = BoundSession(onnx_models.single(), {"x": x}, "cuda")
    places = set()
    for index in range(3):
        bound.update({"x": x + index})
        bound.run(wait=wait)
        values = (*bound.inputs.values(), *bound.outputs.values())
        assert {value.device_name() for value in values} == {"cuda"}
        places.add(tuple(value.data_ptr() for value in values))
    assert len(places) == 1
    expected = run_session(make_session(onnx_models.single(), "cuda"), {"x": x + 2})
    np.testing.assert_array_equal(bound.results()["y"], expected["y"])


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["batch", "sequential"])
def test_recalibration_on_cuda_finds_what_the_cpu_finds(method):
    assert apart(recalibrated("cuda", method), recalibrated("cpu", method)) <= 1e-5
