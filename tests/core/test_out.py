"""`out`: written without a copy, x itself included, or refused before anything changes."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

import cbn

SHAPES = [(40, 7), (4, 7, 33), (4, 7, 5, 6), (2, 7, 3, 4, 5)]
LAYERS = {2: cbn.BatchNorm1d, 3: cbn.BatchNorm1d, 4: cbn.BatchNorm2d, 5: cbn.BatchNorm3d}


def layer_for(shape: tuple[int, ...], training: bool):
    bn = LAYERS[len(shape)](shape[1])
    bn.running_mean = oracles.array((shape[1],), seed=5)
    return bn.train(training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestHonoured:
    def test_out_is_returned_and_holds_the_result(self, shape, training):
        x = oracles.array(shape)
        out = np.full_like(x, np.nan)
        assert layer_for(shape, training)(x, out=out) is out
        np.testing.assert_array_equal(out, layer_for(shape, training)(x))

    def test_out_may_be_x(self, shape, training):
        x = oracles.array(shape)
        expected = layer_for(shape, training)(x)
        assert layer_for(shape, training)(x, out=x) is x
        np.testing.assert_array_equal(x, expected)

    def test_x_may_be_channels_last_and_itself_the_out(self, shape, training):
        x = oracles.channels_last(oracles.array(shape))
        expected = layer_for(shape, training)(x)
        layer_for(shape, training)(x, out=x)
        np.testing.assert_array_equal(x, expected)

    def test_out_may_lie_otherwise_in_memory_than_x(self, shape, training):
        x = oracles.array(shape)
        for source, out in (
            (x, oracles.channels_last(np.zeros_like(x))),
            (oracles.channels_last(x), np.zeros_like(x)),
            (np.asfortranarray(x), np.zeros_like(x)),
        ):
            strides = out.strides
            layer_for(shape, training)(source, out=out)
            assert out.strides == strides
            np.testing.assert_allclose(out, layer_for(shape, training)(x), rtol=2e-6, atol=1e-6)

    def test_what_lies_beside_a_slice_is_left_alone(self, shape, training):
        x = oracles.array(shape)
        room = np.full((shape[0] + 2, shape[1] + 2, *shape[2:]), 7, np.float32)
        out = room[1:-1, 1:-1]
        layer_for(shape, training)(x, out=out)
        np.testing.assert_array_equal(out, layer_for(shape, training)(x))
        out[...] = 7
        assert np.all(room == 7)


def test_an_out_of_large_streamed_stores_is_whole():
    x = oracles.array((4, 8, 260, 260))
    room = np.full(x.size + 3, np.nan, np.float32)
    out = room[1:-2].reshape(x.shape)
    mean, var = np.zeros(8), np.ones(8)
    cbn.batch_norm(x, mean, var, eps=0, out=out)
    np.testing.assert_array_equal(out, x)
    assert np.isnan(room[[0, -2, -1]]).all()


X = oracles.array((4, 7, 5, 6))


def read_only() -> np.ndarray:
    out = np.empty_like(X)
    out.flags.writeable = False
    return out


REFUSED = {
    "shape": (
        lambda x: np.empty((4, 7, 6, 5), np.float32),
        ValueError,
        r"out: expected shape \(4, 7, 5, 6\)",
    ),
    "rank": (
        lambda x: np.empty(840, np.float32),
        ValueError,
        r"out: expected shape .* got \(840,\)",
    ),
    "dtype": (lambda x: np.empty(x.shape), TypeError, "out: expected float32, like x, got float64"),
    "integers": (
        lambda x: np.empty(x.shape, int),
        TypeError,
        "out: expected float16, .* or float64",
    ),
    "read-only": (
        lambda x: read_only(),
        ValueError,
        "out: expected a writable array, got a read-only",
    ),
    "overlap": (lambda x: x[::-1], ValueError, "out: overlaps x; expected x itself"),
    "shared memory": (
        lambda x: np.lib.stride_tricks.as_strided(np.empty(5, np.float32), x.shape, (0, 0, 0, 4)),
        ValueError,
        "out: its values share memory",
    ),
    "strides": (
        lambda x: np.empty((4, 7, 5, 12), np.float32)[..., ::2],
        ValueError,
        "out: expected the channels, or what follows them, to be contiguous; got strides",
    ),
    "alignment": (
        lambda x: np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape),
        ValueError,
        "out: .*align",
    ),
    "list": (lambda x: x.tolist(), TypeError, "out: expected an array .* got list"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reason", REFUSED)
def test_an_out_that_does_not_fit_is_refused_and_nothing_changes(reason, training):
    make, error, message = REFUSED[reason]
    bn = layer_for(X.shape, training)
    x, before = X.copy(), bn.state_dict()
    out = make(x)
    with pytest.raises(error, match=message):
        bn(x, out=out)
    np.testing.assert_array_equal(x, X)
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_an_out_that_overlaps_itself_in_part_is_refused():
    buffer = np.zeros(X.size, np.float32)
    out = np.lib.stride_tricks.as_strided(buffer, X.shape, (4 * 30, 4 * 30, 4 * 6, 4))
    with pytest.raises(ValueError, match="out: its values share memory"):
        cbn.batch_norm(X, None, None, training=True, out=out)


def test_an_out_shifted_against_x_is_refused():
    buffer = oracles.array((X.size + 6,))
    x, out = (buffer[at : at + X.size].reshape(X.shape) for at in (0, 6))
    with pytest.raises(ValueError, match="out: overlaps x"):
        cbn.batch_norm(x, None, None, training=True, out=out)


def test_slices_of_one_buffer_that_share_no_byte_are_taken():
    buffer = np.random.default_rng(0).normal(size=(2, 8, 4, 4)).astype(np.float32)
    expected = cbn.batch_norm(buffer[:, :4].copy(), None, None, training=True)
    y = cbn.batch_norm(buffer[:, :4], None, None, training=True, out=buffer[:, 4:])
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(buffer[:, 4:], expected)


def test_a_memory_map_is_given_back_as_it_came(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    out = np.memmap(tmp_path / "y", np.float32, "w+", shape=(4, 3))
    assert cbn.batch_norm(x, None, None, training=True, out=out) is out
    np.testing.assert_array_equal(out, cbn.batch_norm(x, None, None, training=True))
