"""Arrays as they come: slices, transposes, any strides, other axes, other kinds of array."""

from __future__ import annotations

import array as stdlib_array
import tracemalloc

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbn


def unaligned(x: np.ndarray) -> np.ndarray:
    """A copy of x that starts one byte past where its dtype wants to."""
    buffer = np.empty(x.nbytes + 1, np.uint8)[1:]
    result = buffer.view(x.dtype).reshape(x.shape)
    result[...] = x
    assert not result.flags.aligned
    return result


def field_of_a_record(x: np.ndarray) -> np.ndarray:
    records = np.zeros(x.shape, [("tag", "u1"), ("value", x.dtype)])
    records["value"] = x
    return records["value"]


BASE = oracles.array((6, 20, 9, 10))
VIEWS = {
    "slice of the batch": BASE[1:4],
    "every other sample": BASE[::2],
    "slice of channels": BASE[:, 3:11],
    "every third channel": BASE[:, ::3],
    "slice of rows": BASE[:, :, 2:5],
    "slice of columns": BASE[..., 1:8],
    "every other column": BASE[..., ::2],
    "samples backwards": BASE[::-1],
    "channels backwards": BASE[:, ::-1],
    "columns backwards": BASE[..., ::-1],
    "all backwards": BASE[::-1, ::-1, ::-1, ::-1],
    "batch and channels exchanged": BASE.transpose(1, 0, 2, 3),
    "height and width exchanged": BASE.transpose(0, 1, 3, 2),
    "channels last in memory": oracles.channels_last(BASE),
    "channels last, some channels": oracles.channels_last(BASE)[:, 2:19],
    "channels last, some rows": oracles.channels_last(BASE)[:, :, 1:7],
    "Fortran order": np.asfortranarray(BASE),
    "one sample for all": np.broadcast_to(BASE[:1], (5, 20, 9, 10)),
    "one column for all": np.broadcast_to(BASE[..., :1], BASE.shape),
    "one value for a channel": np.broadcast_to(BASE[:1, :, :1, :1], BASE.shape),
    "unaligned start": unaligned(BASE),
    "odd start": np.concatenate([BASE.ravel(), BASE.ravel()])[1 : 1 + BASE.size].reshape(
        BASE.shape
    ),
    "field of a record": field_of_a_record(BASE),
    "read-only": np.frombuffer(BASE.tobytes(), BASE.dtype).reshape(BASE.shape),
}


def check(x: np.ndarray, axis: int = 1) -> None:
    """Training, eval and statistics of x agree with the oracle, and x stays as it was."""
    before = x.copy()
    exact = oracles.statistics(x, axis)
    stats = cbn.batch_stats(x, axis=axis)
    assert oracles.relative_error(stats.var, exact.var) <= oracles.VARIANCE_RTOL
    y = cbn.batch_norm(x, None, None, training=True, axis=axis)
    assert oracles.ulp_error(y, x, exact.mean, exact.var, axis=axis) <= oracles.MAX_ULP
    mean, var = exact.mean.astype(np.float32), exact.var.astype(np.float32)
    y = cbn.batch_norm(x, mean, var, axis=axis)
    assert y.shape == x.shape
    assert oracles.ulp_error(y, x, mean, var, axis=axis) <= oracles.MAX_ULP
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("view", VIEWS)
def test_any_view_is_computed_rightly(view):
    check(VIEWS[view])


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -4])
def test_any_axis_can_hold_the_channels(axis):
    check(oracles.array((4, 5, 6, 7)), axis)


@given(st.data())
def test_any_strides_are_computed_rightly(data):
    x = oracles.array((5, 6, 7, 8))
    order = data.draw(st.permutations(range(4)))
    steps = data.draw(st.tuples(*[st.sampled_from([1, 2, -1, -3])] * 4))
    x = x.transpose(order)[tuple(slice(None, None, step) for step in steps)]
    check(x, data.draw(st.integers(0, 3)))


@pytest.mark.parametrize("view", ["slice of the batch", "slice of channels", "unaligned start"])
def test_a_view_gives_the_bits_of_its_copy(view):
    x = VIEWS[view]
    y = cbn.batch_norm(x, None, None, training=True)
    np.testing.assert_array_equal(y, cbn.batch_norm(x.copy(), None, None, training=True))


def test_the_result_keeps_the_order_of_axes_in_memory():
    x = oracles.channels_last(BASE)
    assert cbn.batch_norm(x, None, None, training=True).strides == x.strides


def peak_of(call) -> int:
    """The most bytes that Python and NumPy held at once during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE = oracles.array((16, 32, 64, 64))
TAKEN_AS_THEY_ARE = {
    "contiguous": LARGE,
    "channels last in memory": oracles.channels_last(LARGE),
    "slice of the batch": LARGE[3:13],
    "slice of channels": LARGE[:, 1:],
    "channels last, some channels": oracles.channels_last(LARGE)[:, 1:],
    "samples backwards": LARGE[::-1],
}


@pytest.mark.parametrize("view", TAKEN_AS_THEY_ARE)
def test_a_view_with_contiguous_runs_is_not_copied(view):
    x = TAKEN_AS_THEY_ARE[view]
    out = (
        np.empty_like(LARGE)[: x.shape[0], : x.shape[1]] if "last" not in view else np.empty_like(x)
    )
    mean, var = np.zeros(x.shape[1]), np.ones(x.shape[1])
    room = 64 * 1024  # workspace is a few values a channel; x is 8 MiB
    assert peak_of(lambda: cbn.batch_stats(x)) < room
    assert peak_of(lambda: cbn.batch_norm(x, mean, var, out=out)) < room
    assert peak_of(lambda: cbn.batch_norm(x, mean, var, training=True, out=out)) < room
    assert peak_of(lambda: cbn.batch_norm(x, mean, var, training=True, eps=0, out=out)) < room


def test_what_has_the_buffer_protocol_is_taken():
    values = stdlib_array.array("f", BASE[0, 0].ravel())
    x = memoryview(values).cast("B").cast("f", (9, 10))
    y = cbn.batch_norm(x, None, None, training=True)
    np.testing.assert_array_equal(y, cbn.batch_norm(BASE[0, 0], None, None, training=True))


def test_what_has_dlpack_alone_is_taken():
    class Exporter:
        def __dlpack__(self, **options):
            return BASE.__dlpack__(**options)

        def __dlpack_device__(self):
            return BASE.__dlpack_device__()

    y = cbn.batch_norm(Exporter(), None, None, training=True)
    np.testing.assert_array_equal(y, cbn.batch_norm(BASE, None, None, training=True))
