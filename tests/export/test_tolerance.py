"""The measure of errors, and that each tolerance holds onnxruntime's arithmetic and no more."""

from __future__ import annotations

import math

import numpy as np
import onnx_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cbn
from cbn.export import recompute, tolerance
from cbn.export.recompute import Parameters
from cbn.export.sessions import make_session, run_session
from cbn.export.tolerance import Agreement, compare, ulp

F4, F8 = np.dtype(np.float32), np.dtype(np.float64)


def floats(*values, dtype=F4):
    return np.array(values, dtype)


def test_ulp_is_the_distance_to_the_next_number():
    assert ulp(1.0, F4) == 2.0**-23
    assert ulp(1.0, F8) == 2.0**-52
    assert ulp(1.999, F4) == 2.0**-23
    assert ulp(2.0, np.dtype(np.float16)) == 2.0**-9
    assert ulp(0.0, F4) == 2.0**-149


@pytest.mark.parametrize("size", [math.inf, math.nan, 1e300])
def test_ulp_of_what_the_type_cannot_hold_is_finite(size):
    assert ulp(size, F4) == 2.0**103


def test_errors_are_counted_in_ulp_of_the_largest_term():
    found = compare(floats(1 + 2**-22, 0), floats(1, 2**-20), floats(1, 8), 3)
    assert found == Agreement(2.0**-20, 2.0, 3)
    assert found.ok
    assert found.ratio == 2 / 3


def test_a_tolerance_is_inclusive():
    assert Agreement(1, 3.0, 3).ok
    assert not Agreement(1, math.nextafter(3.0, 4), 3).ok


def test_nan_and_infinity_equal_themselves():
    values = floats(math.nan, math.inf, -math.inf, 1)
    assert compare(values, values.copy(), 1.0, 0) == Agreement(0, 0, 0)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [(math.nan, 1), (1, math.nan), (math.inf, 1), (math.inf, -math.inf), (math.inf, math.nan)],
)
@pytest.mark.parametrize("term", [1.0, math.inf, math.nan])
def test_nan_or_infinity_on_one_side_is_an_infinite_error(actual, expected, term):
    found = compare(floats(1, actual), floats(1, expected), term, 1e9)
    assert (found.max_abs_error, found.max_ulp_error, found.ok) == (math.inf, math.inf, False)


def test_another_shape_or_type_is_an_infinite_error():
    one = floats(1, 2)
    for other in (one[:1], one.astype(F8)):
        assert compare(one, other, 1.0, 1e9).max_ulp_error == math.inf


def test_worst_keeps_the_largest_error_and_the_one_nearest_to_failing():
    near, far = Agreement(1.0, 9, 10), Agreement(2.0, 50, 100)
    assert recompute.worst(near, far) == recompute.worst(far, near) == Agreement(2.0, 9, 10)


def test_sixteen_bit_values_have_one_ulp_and_what_is_left_of_float32():
    assert tolerance.in_type(15, F4) == 15
    assert tolerance.in_type(15, np.dtype(np.float16)) == 1 + 15 / 2**13


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("nodes", [0, 1, 100, 10**9])
def test_an_output_tolerance_never_reaches_what_it_measures(dtype, nodes):
    bound = tolerance.output_ulp(nodes, np.dtype(dtype))
    assert 0 < bound <= 1 / (64 * np.finfo(dtype).eps)


def case(generator, shape, mean, deviation, dtype):
    channels = shape[1]
    x = (generator.normal(size=shape) * deviation + mean).astype(dtype)
    stored = Parameters(
        scale=generator.normal(size=channels).astype(dtype),
        bias=(generator.normal(size=channels) * 3).astype(dtype),
        mean=np.asarray(mean + generator.normal(size=channels) * deviation, dtype),
        var=np.asarray(deviation**2 * generator.uniform(0.5, 2, channels), dtype),
        eps=float(np.float32(1e-5)),
        momentum=float(np.float32(0.9)),
    )
    return x, stored


def model(stored, training, dtype):
    arrays = {"s": stored.scale, "b": stored.bias, "m": stored.mean, "v": stored.var}
    outputs = ("y", "y_mean", "y_var") if training else ("y",)
    return onnx_models.single(
        training=training, arrays=arrays, dtype=dtype, shape=("N", "C", "L"), outputs=outputs
    )


SCALES = {
    "mean": st.sampled_from([0.0, 1.0, -300.0, 1e6]),
    "deviation": st.sampled_from([1e-2, 1.0, 1e3]),
    "dtype": st.sampled_from(["float32", "float64"]),
    "seed": st.integers(0, 2**32),
}


@given(**SCALES)
@settings(max_examples=60, deadline=None)
def test_onnxruntimes_eval_node_is_within_its_bound(mean, deviation, dtype, seed):
    x, stored = case(np.random.default_rng(seed), (4, 3, 50), mean, deviation, dtype)
    session = make_session(model(stored, False, dtype), optimize=False)
    y = run_session(session, {"x": x})["y"]
    found = recompute.check_eval(x, y, recompute.eval_output(x, stored), stored)
    assert found.tolerance == 15
    assert found.ok


@given(length=st.sampled_from([1, 7, 500]), **SCALES)
@settings(max_examples=60, deadline=None)
def test_onnxruntimes_training_node_is_within_its_bounds(length, mean, deviation, dtype, seed):
    x, stored = case(np.random.default_rng(seed), (9, 3, length), mean, deviation, dtype)
    assert_training_agrees(x, stored, dtype)


@pytest.mark.parametrize("length", [1, 1000, 100_000])
def test_sums_that_err_to_one_side_are_within_the_bounds(length):
    x, stored = case(np.random.default_rng(0), (8, 3, length), 0.1, 0, "float32")
    stored.var[:] = 1
    assert_training_agrees(x, stored, "float32")


def assert_training_agrees(x, stored, dtype):
    session = make_session(model(stored, True, dtype), optimize=False)
    y, mean, var = run_session(session, {"x": x}).values()
    stats = cbn.batch_stats(x)
    found = recompute.check_training(x, y, recompute.training_output(x, stored), stored, stats)
    running = recompute.running_statistics(stats, stored)
    others = recompute.check_running(x.shape, mean, var, running, stored, stats, x.dtype)
    assert found.ok
    assert {name: item.ok for name, item in others.items()} == {
        "running_mean": True,
        "running_var": True,
    }


def test_a_scale_below_the_smallest_normal_number_is_no_defect():
    x, stored = case(np.random.default_rng(0), (4, 3, 50), 0.0, 100.0, "float32")
    stored.scale[:] = 1e-42
    stored.bias[:] = 0
    session = make_session(model(stored, False, "float32"), optimize=False)
    y = run_session(session, {"x": x})["y"]
    assert recompute.check_eval(x, y, recompute.eval_output(x, stored), stored).ok


@pytest.mark.parametrize("shape", [(32, 64, 3136), (1, 3, 10), (100, 8, 1)])
@pytest.mark.parametrize("dtype", [F4, F8])
def test_training_tolerance_grows_with_the_sums_alone(shape, dtype):
    depth = tolerance.summation_depth(shape, dtype)
    lanes = 32 // dtype.itemsize
    assert shape[2] / lanes + shape[0] <= depth <= shape[2] / lanes + shape[0] + 6
    assert tolerance.training_ulp(depth) == 28 + 2 * depth
