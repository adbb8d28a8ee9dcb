"""The same layers in PyTorch, where it is installed: values, running statistics, state."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is a peer, not needed")

PAIRS = [
    pytest.param(cbn.BatchNorm1d, "BatchNorm1d", (9, 6), id="1d-2D"),
    pytest.param(cbn.BatchNorm1d, "BatchNorm1d", (9, 6, 11), id="1d-3D"),
    pytest.param(cbn.BatchNorm2d, "BatchNorm2d", (4, 6, 7, 5), id="2d"),
    pytest.param(cbn.BatchNorm3d, "BatchNorm3d", (3, 6, 4, 3, 5), id="3d"),
]
each_pair = pytest.mark.parametrize(("layer", "name", "shape"), PAIRS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def peer_of(layer, name: str, dtype: str, **options):
    """A layer of ours and its peer, with the same weight, bias and running statistics."""
    ours = layer(6, dtype=dtype, **options)
    theirs = getattr(torch.nn, name)(6, dtype=getattr(torch, dtype), **options)
    rng = np.random.default_rng(0)
    for key, parameter in theirs.state_dict().items():
        if key != "num_batches_tracked":
            values = rng.uniform(0.5, 2, 6).astype(dtype)
            parameter.copy_(torch.from_numpy(values))
            setattr(ours, key, values)
    return ours, theirs


def assert_same_state(ours, theirs) -> None:
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        close(value, state[key].numpy())


def close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to some ULP of the numbers in play, which are of the order of 1 to 10."""
    assert got.dtype == expected.dtype
    room = 16 * np.finfo(got.dtype).eps if got.dtype.kind == "f" else 0
    np.testing.assert_allclose(got, expected, rtol=room, atol=room)


@each_dtype
@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@each_pair
def test_training_then_eval(layer, name, shape, track, affine, momentum, dtype):
    options = {"track_running_stats": track, "affine": affine, "momentum": momentum, "eps": 1e-3}
    ours, theirs = peer_of(layer, name, dtype, **options)
    for seed in range(3):
        x = oracles.array(shape, dtype, seed)
        close(ours(x), theirs(torch.from_numpy(x)).detach().numpy())
    assert_same_state(ours, theirs)
    ours.eval(), theirs.eval()
    close(ours(x), theirs(torch.from_numpy(x)).detach().numpy())
    assert_same_state(ours, theirs)


@each_dtype
@pytest.mark.parametrize("training", [True, False])
@each_pair
def test_functional(layer, name, shape, training, dtype):
    x = oracles.array(shape, dtype)
    mean, var, weight, bias = (np.abs(oracles.array((6,), dtype, seed)) for seed in range(4))
    tensors = [torch.from_numpy(values.copy()) for values in (x, mean, var, weight, bias)]
    expected = torch.nn.functional.batch_norm(*tensors, training, 0.3, 1e-2)
    close(cbn.batch_norm(x, mean, var, weight, bias, training, 0.3, 1e-2), expected.numpy())
    close(mean, tensors[1].numpy())
    close(var, tensors[2].numpy())


@each_pair
def test_a_state_dict_comes_from_torch_and_goes_back(layer, name, shape):
    theirs = getattr(torch.nn, name)(6)
    theirs(torch.from_numpy(oracles.array(shape)))
    ours = layer(6)
    ours.load_state_dict(theirs.state_dict())
    other = getattr(torch.nn, name)(6)
    other.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    for key, value in theirs.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_a_tensor_is_read_without_a_copy_and_may_be_out():
    x = oracles.array((4, 6, 5, 5))
    tensor = torch.from_numpy(x.copy())
    y = cbn.BatchNorm2d(6)(tensor)
    np.testing.assert_array_equal(y, cbn.BatchNorm2d(6)(x))
    cbn.BatchNorm2d(6)(tensor, out=tensor)
    np.testing.assert_array_equal(tensor.numpy(), y)


def test_a_channels_last_tensor_is_taken():
    x = oracles.array((4, 6, 5, 5))
    tensor = torch.from_numpy(x).to(memory_format=torch.channels_last)
    np.testing.assert_allclose(
        cbn.BatchNorm2d(6)(tensor), cbn.BatchNorm2d(6)(x), rtol=1e-5, atol=1e-6
    )


def test_a_bfloat16_tensor_is_read_without_a_copy_and_may_be_out():
    x = torch.randn(6, 5).bfloat16()
    values = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    bn = cbn.BatchNorm1d(5, dtype="bfloat16")
    bn.load_state_dict(torch.nn.BatchNorm1d(5).bfloat16().state_dict())
    expected = cbn.BatchNorm1d(5, dtype="bfloat16")(values)
    np.testing.assert_array_equal(bn(x), expected)
    assert bn(x, out=x) is x
    np.testing.assert_array_equal(values, expected)


def test_a_tensor_that_requires_a_gradient_is_refused():
    with pytest.raises(TypeError, match=r"x: .* cannot be read through __dlpack__"):
        cbn.batch_stats(torch.ones(4, 3).bfloat16().requires_grad_())
    with pytest.raises(TypeError, match=r"x: .* cannot be read through __dlpack__"):
        cbn.BatchNorm1d(6)(torch.ones(4, 6, requires_grad=True))


@each_pair
def test_torch_refuses_one_value_per_channel_too(layer, name, shape):
    one = np.ones((1, 6) + (1,) * (len(shape) - 2), np.float32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        getattr(torch.nn, name)(6)(torch.from_numpy(one))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(6)(one)
