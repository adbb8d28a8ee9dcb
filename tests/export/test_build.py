"""A layer's ONNX model, run by onnxruntime, computes what the layer does, in every combination."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import onnx
import onnx_models
import oracles
import pytest

import cbn
from cbn.export import opsets
from cbn.export.build import to_onnx
from cbn.export.files import load
from cbn.export.tolerance import EVAL_ULP, running_ulp, summation_depth, training_ulp

Layer = cbn.BatchNorm1d | cbn.BatchNorm2d | cbn.BatchNorm3d

OPSETS = range(opsets.OLDEST_BUILT, opsets.newest_opset() + 1)
CHANNELS = 3
SHAPES = {2: (30, 3), 3: (4, 3, 7), 4: (4, 3, 5, 2), 5: (2, 3, 3, 2, 4)}
KINDS = {2: cbn.BatchNorm1d, 3: cbn.BatchNorm1d, 4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}
DTYPES = ("float32", "float64")

# Exact in float32, as ONNX stores them.
EPS, MOMENTUM = 2.0**-10, 0.25


def layer(rank: int = 4, *, fresh: bool = False, **options: Any) -> Layer:
    made = KINDS[rank](CHANNELS, **{"eps": EPS, "momentum": MOMENTUM, **options})
    if not fresh:
        state = dict(
            zip(
                ("weight", "bias", "running_mean", "running_var"),
                onnx_models.named_parameters(CHANNELS, np.float64).values(),
                strict=True,
            )
        )
        made.load_state_dict({key: state[key] for key in made.state_dict() if key in state})
    return made


def data(bn: Layer, rank: int) -> np.ndarray:
    x = oracles.array(SHAPES[rank], bn.dtype, seed=rank)
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if bn.channels_last else x


def output_error(y: np.ndarray, bn: Layer, x: np.ndarray, form: str = "batchnorm") -> float:
    """Against the exact result, in ULP of the largest term of the form's own formula."""
    axis = x.ndim - 1 if bn.channels_last else 1
    if bn.training or bn.running_mean is None:
        mean, var, _ = oracles.statistics(x, axis)
    else:
        mean, var = bn.running_mean, bn.running_var
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    if form != "batchnorm":
        return oracles.ulp_error(y, x, mean, var, bn.weight, bn.bias, bn.eps, axis)
    # onnxruntime's node computes x * a + (bias - mean * a), so x * a and mean * a are terms.
    expected = oracles.batch_norm(x, mean, var, bn.weight, bn.bias, bn.eps, axis)
    scale = np.abs(1 if bn.weight is None else bn.weight) / np.sqrt(var + np.longdouble(bn.eps))
    size = np.sqrt(np.square(mean) + var) * scale
    largest = np.maximum(np.abs(expected), np.abs(x) * oracles.along(scale, x.ndim, axis))
    largest = np.maximum(largest, oracles.along(size, x.ndim, axis))
    return float((np.abs(y - expected) / np.spacing(largest.astype(x.dtype))).max())


def running_error(got: dict[str, np.ndarray], bn: Layer, x: np.ndarray) -> float:
    """Of both running statistics after a step, in ULP of their largest term."""
    after = copy.deepcopy(bn)
    after(x)
    worst = 0.0
    for name in ("running_mean", "running_var"):
        old, new = getattr(bn, name), getattr(after, name)
        assert got[name].dtype == new.dtype
        assert got[name].shape == new.shape
        largest = np.maximum(np.maximum(np.abs(old), np.abs(new)), np.square(x).mean())
        unit = np.spacing(largest.astype(x.dtype))
        worst = max(worst, float((np.abs(got[name] - new) / unit).max()))
    return worst


@pytest.mark.parametrize("form", ["batchnorm", "affine", "primitives"])
@pytest.mark.parametrize("opset", OPSETS)
def test_eval(opset: int, form: Any) -> None:
    for rank, dtype, last in itertools.product(SHAPES, DTYPES, (False, True)):
        bn = layer(rank, dtype=dtype, channels_last=last).eval()
        x = data(bn, rank)
        got = onnx_models.run(to_onnx(bn, opset, form, rank=rank), x)
        assert list(got) == ["y"]
        assert output_error(got["y"], bn, x, form) <= EVAL_ULP, (rank, dtype, last)


@pytest.mark.parametrize("form", ["batchnorm", "primitives"])
@pytest.mark.parametrize("opset", OPSETS)
def test_training(opset: int, form: Any) -> None:
    for rank, dtype, last in itertools.product(SHAPES, DTYPES, (False, True)):
        bn = layer(rank, dtype=dtype, channels_last=last)
        x = data(bn, rank)
        depth = summation_depth(SHAPES[rank], x.dtype)
        # The second run of a session: a state that it hides would show.
        got = onnx_models.run(to_onnx(bn, opset, form, rank=rank), x, times=2)
        assert output_error(got["y"], bn, x, form) <= training_ulp(depth), (rank, dtype, last)
        assert running_error(got, bn, x) <= running_ulp(depth), (rank, dtype, last)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, OPSETS[-1]])
def test_onnxruntime_carries_nothing_from_one_run_to_the_next(
    opset: int, track: bool, optimize: bool
) -> None:
    # weight = var = 1 and bias = mean = 0: onnxruntime may make one initializer of two.
    bn = layer(fresh=True, track_running_stats=track)
    x = data(bn, 4)
    model = to_onnx(bn, opset)
    once = onnx_models.run(model, x, optimize=optimize)
    again = onnx_models.run(model, x, optimize=optimize, times=3)
    for name, array in once.items():
        np.testing.assert_array_equal(array, again[name])
    assert output_error(again["y"], bn, x) <= training_ulp(summation_depth(x.shape, x.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("opset", OPSETS)
def test_the_affine_form_is_the_fused_layer_to_the_bit(opset: int, dtype: str) -> None:
    bn = layer(dtype=dtype).eval()
    x = data(bn, 4)
    got = onnx_models.run(to_onnx(bn, opset, "affine"), x, optimize=False)
    np.testing.assert_array_equal(got["y"], bn.fuse()(x))


@pytest.mark.parametrize("form", ["batchnorm", "primitives"])
def test_without_running_statistics_eval_takes_the_batch_s(form: Any) -> None:
    bn = layer(track_running_stats=False).eval()
    x = data(bn, 4)
    got = onnx_models.run(to_onnx(bn, form=form), x)
    assert list(got) == ["y"]
    assert output_error(got["y"], bn, x, form) <= training_ulp(summation_depth(x.shape, x.dtype))


@pytest.mark.parametrize("form", ["batchnorm", "affine", "primitives"])
def test_without_weight_and_bias(form: Any) -> None:
    bn = layer(affine=False).eval()
    x = data(bn, 4)
    y = onnx_models.run(to_onnx(bn, form=form), x)["y"]
    assert output_error(y, bn, x, form) <= EVAL_ULP


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_primitives_keep_their_precision_far_from_zero(mean: float) -> None:
    bn = layer(fresh=True)
    x = (oracles.array((8, 3, 6, 6)) + np.float32(mean)).astype(np.float32)
    y = onnx_models.run(to_onnx(bn, form="primitives"), x)["y"]
    assert output_error(y, bn, x, "primitives") <= training_ulp(summation_depth(x.shape, x.dtype))


@pytest.mark.parametrize("form", ["batchnorm", "primitives"])
def test_running_var_by_onnx_s_own_rule(form: Any) -> None:
    bn = layer(dtype="float64")
    x = data(bn, 4)
    got = onnx_models.run(to_onnx(bn, form=form, unbiased_running_var=False), x)
    _, var, _ = oracles.statistics(x)
    assert list(got) == ["y", "running_mean", "running_var"]
    expected = oracles.running(bn.running_var, var, MOMENTUM)
    assert oracles.relative_error(got["running_var"], expected) < 1e-15


def test_the_node_s_own_running_var_is_an_output_beside_the_unbiased_one() -> None:
    bn = layer(dtype="float64")
    x = data(bn, 4)
    both = onnx_models.run(to_onnx(bn), x)
    own = onnx_models.run(to_onnx(bn, unbiased_running_var=False), x)
    assert list(both) == ["y", "running_mean", "running_var", "running_var_population"]
    np.testing.assert_array_equal(both["running_var_population"], own["running_var"])


@pytest.mark.parametrize("tracked", [0, 3])
def test_a_cumulative_average_weighs_the_next_batch(tracked: int) -> None:
    bn = layer(momentum=None)
    bn.num_batches_tracked = tracked
    x = data(bn, 4)
    got = onnx_models.run(to_onnx(bn), x)
    assert running_error(got, bn, x) <= running_ulp(summation_depth(x.shape, x.dtype))


def test_onnx_s_momentum_is_one_minus_torch_s() -> None:
    (node,) = to_onnx(layer(momentum=0.1), unbiased_running_var=False).graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["momentum"] == float(np.float32(0.9))
    assert attributes["training_mode"] == 1


def test_the_model_does_not_follow_the_layer() -> None:
    bn = layer()
    before = bn.running_mean.copy()
    model = load(to_onnx(bn))
    bn(data(bn, 4))
    stored = model.graph.initializers["input_mean"].const_value
    np.testing.assert_array_equal(stored.numpy(), before)
    assert not np.array_equal(bn.running_mean, before)


@pytest.mark.parametrize("opset", OPSETS)
def test_the_opset_and_the_lowest_ir_version_are_stamped(opset: int) -> None:
    model = to_onnx(layer(), opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == opsets.ir_version_for(opset)
    assert not model.graph.input[1:]


def dims(model: onnx.ModelProto) -> list[list[int | str]]:
    """Of x and of y."""
    return [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]


@pytest.mark.parametrize(
    ("rank", "last", "expected"),
    [
        (2, False, ["N", 3]),
        (3, False, ["N", 3, "L"]),
        (4, False, ["N", 3, "H", "W"]),
        (5, False, ["N", 3, "D", "H", "W"]),
        (3, True, ["N", "L", 3]),
        (4, True, ["N", "H", "W", 3]),
    ],
)
def test_sizes_are_open_unless_told(rank: int, last: bool, expected: list[int | str]) -> None:
    assert dims(to_onnx(layer(rank, channels_last=last), rank=rank)) == [expected] * 2


def test_sizes_can_be_fixed_or_named() -> None:
    model = to_onnx(layer(), shape=(1, 3, None, "width"))
    assert dims(model) == [[1, 3, "H", "width"]] * 2


def test_batch_norm_1d_is_3d_unless_told() -> None:
    assert len(dims(to_onnx(layer(3)))[0]) == 3
    assert len(dims(to_onnx(layer(3), rank=2))[0]) == 2
    assert dims(to_onnx(layer(3), shape=(5, 3)))[0] == [5, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 6}, "expected opset from 7"),
        ({"form": "fused"}, "'batchnorm', 'affine', 'primitives', got 'fused'"),
        ({"rank": 3}, "BatchNorm2d with rank 4, got 3"),
        ({"shape": (1, 3)}, "BatchNorm2d with rank 4, got 2"),
        ({"rank": 4, "shape": (1, 3, 4)}, "shape of 4 dimensions"),
        ({"shape": (1, 5, 4, 4)}, "3 channels at dimension 1"),
        ({"shape": (0, 3, 4, 4)}, "at least 1"),
        ({"shape": (-1, 3, 4, 4)}, "at least 1"),
        ({"shape": (1.5, 3, 4, 4)}, "at least 1"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_onnx(layer(), **arguments)


def test_what_is_no_layer() -> None:
    with pytest.raises(TypeError, match=r"expected a cbn.BatchNorm1d, .* got builtins.dict"):
        to_onnx({})  # type: ignore[arg-type]


def test_the_affine_form_needs_stored_statistics() -> None:
    with pytest.raises(ValueError, match="the layer is in training mode"):
        to_onnx(layer(), form="affine")
    with pytest.raises(ValueError, match="the layer has no running statistics"):
        to_onnx(layer(track_running_stats=False).eval(), form="affine")


@pytest.mark.parametrize("form", ["batchnorm", "affine", "primitives"])
@pytest.mark.parametrize("var", [-1.0, np.nan])
def test_statistics_that_cannot_be_normalized_with(var: float, form: Any) -> None:
    bn = layer().eval()
    bn.running_var = np.array([1.0, var, 1.0])
    with pytest.raises(ValueError, match="running_var"):
        to_onnx(bn, form=form)


@pytest.mark.parametrize("form", ["affine", "primitives"])
def test_16_bit_layers_are_spelled_out_in_float32(form: str) -> None:
    bn = cbn.BatchNorm2d(CHANNELS, dtype="float16").eval()
    bn.running_mean[:], bn.running_var[:] = 200, 2
    x = np.random.default_rng(0).normal(200, 1.5, (4, CHANNELS, 5, 2)).astype(np.float16)
    found = onnx_models.run(to_onnx(bn, form=form), x)["y"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, bn(x))


def test_16_bit_layers_in_training_mode() -> None:
    bn = cbn.BatchNorm2d(CHANNELS, dtype="float16")
    with pytest.raises(ValueError, match="form 'batchnorm' in training mode cannot be float16"):
        to_onnx(bn)
    x = np.random.default_rng(0).normal(200, 1.5, (4, CHANNELS, 5, 2)).astype(np.float16)
    found = onnx_models.run(to_onnx(bn, form="primitives"), x)
    expected = bn(x)
    assert np.abs(found["y"] - expected).max() <= np.spacing(np.float16(np.abs(expected).max()))
    for name in ("running_mean", "running_var"):
        wanted = getattr(bn, name).astype(np.float16)
        assert np.abs(found[name] - wanted).max() <= np.spacing(np.abs(wanted).max())
