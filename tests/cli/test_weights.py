"""Reading one layer's arrays from a file of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cbn.cli.weights import read_layer


def state(features: int = 3, prefix: str = "") -> dict[str, np.ndarray]:
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = {
        prefix + name: np.arange(1, features + 1, dtype="float32") * index
        for index, name in enumerate(names, 1)
    }
    return arrays | {f"{prefix}num_batches_tracked": np.array(7)}


NETWORK = {
    "conv.weight": np.ones((3, 1, 3, 3), "float32"),
    **state(3, "layer1.0.bn1."),
    **state(5, "layer1.0.bn2."),
    "fc.bias": np.ones(2, "float32"),
}


@pytest.fixture(params=["npz", "safetensors"])
def save(request, tmp_path):
    def write(arrays: dict[str, np.ndarray]) -> Path:
        path = tmp_path / f"weights.{request.param}"
        if request.param == "npz":
            np.savez(path, **arrays)
        else:
            save_file(arrays, path)
        return path

    return write


def test_reads_a_layer_of_its_own(save):
    read = read_layer(save(state()))
    assert {name: array.tolist() for name, array in read.items()} == {
        name: array.tolist() for name, array in state().items()
    }


@pytest.mark.parametrize("prefix", ["layer1.0.bn2", "layer1.0.bn2."])
def test_takes_the_layer_at_a_prefix(save, prefix):
    read = read_layer(save(NETWORK), prefix)
    assert {name: array.shape for name, array in read.items()} == {
        "weight": (5,),
        "bias": (5,),
        "running_mean": (5,),
        "running_var": (5,),
        "num_batches_tracked": (),
    }


def test_takes_the_only_layer_without_a_prefix(save):
    others = {name: array for name, array in NETWORK.items() if "bn2" not in name}
    assert read_layer(save(others))["weight"].shape == (3,)


def test_takes_a_layer_without_parameters(save):
    statistics = {name: array for name, array in state().items() if name.startswith("running")}
    assert set(read_layer(save(statistics))) == {"running_mean", "running_var"}


def test_takes_a_layer_without_running_statistics(save):
    parameters = {name: state()[name] for name in ("weight", "bias")}
    assert set(read_layer(save(parameters))) == {"weight", "bias"}


def test_several_layers_are_listed(save):
    with pytest.raises(ValueError, match=r"2 .*--prefix: layer1\.0\.bn1\., layer1\.0\.bn2\.$"):
        read_layer(save(NETWORK))


def test_an_unknown_prefix_lists_the_layers(save):
    with pytest.raises(ValueError, match=r"'bn9'.* layer1\.0\.bn1\., layer1\.0\.bn2\.$"):
        read_layer(save(NETWORK), "bn9")


def test_a_file_without_batch_norm_says_what_it_holds(save):
    with pytest.raises(ValueError, match=r"no batch norm layer.*: conv\.weight, fc\.bias$"):
        read_layer(save({name: NETWORK[name] for name in ("conv.weight", "fc.bias")}))


def test_a_key_that_batch_norm_has_not_is_named(save):
    with pytest.raises(ValueError, match=r"holds gamma, which no batch norm layer has"):
        read_layer(save({**state(), "gamma": np.ones(3, "float32")}))


def test_a_damaged_file_is_named(save):
    path = save(NETWORK)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{path.name}: .*damaged"):
        read_layer(path, "layer1.0.bn1")


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.npz", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            read_layer(tmp_path / name)


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.pt: expected a \.npz or \.safetensors file"):
        read_layer(tmp_path / "model.pt")


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "pickled.npz"
    np.savez(path, running_mean=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"pickled\.npz: cannot read running_mean"):
        read_layer(path)


def test_a_lone_array_is_refused(tmp_path):
    np.save(tmp_path / "lone.npy", np.ones(3))
    path = (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    with pytest.raises(ValueError, match="one array without a name"):
        read_layer(path)


def test_a_type_that_numpy_has_not_is_named(tmp_path):
    header = b'{"running_mean":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    path = tmp_path / "float8.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match="running_mean is of type F8_E4M3"):
        read_layer(path)
