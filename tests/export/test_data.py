"""Input data from files and arrays, checked before anything runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cbn.export.data import DataError, batches, load_data
from cbn.export.inputs import ModelInput

F4 = np.dtype(np.float32)
IMAGE = ModelInput("image", F4, ("N", 3, "H", 8))
MASK = ModelInput("mask", np.dtype(bool), ("N",))
X = np.arange(5 * 3 * 2 * 8, dtype=np.float32).reshape(5, 3, 2, 8)


def save(path, **arrays):
    if path.suffix == ".npy":
        np.save(path, *arrays.values())
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(onnx.numpy_helper.from_array(*arrays.values()).SerializeToString())
    return path


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pb"])
def test_files(tmp_path, name):
    feeds = load_data(save(tmp_path / name, image=X), [IMAGE])
    assert list(feeds) == ["image"]
    np.testing.assert_array_equal(feeds["image"], X)


def test_path_as_text(tmp_path):
    assert load_data(str(save(tmp_path / "x.npy", image=X)), [IMAGE])["image"].shape == X.shape


def test_npy_is_memory_mapped(tmp_path):
    assert isinstance(load_data(save(tmp_path / "x.npy", x=X), [IMAGE])["image"], np.memmap)


def test_arrays_and_mappings():
    np.testing.assert_array_equal(load_data(X, [IMAGE])["image"], X)
    np.testing.assert_array_equal(load_data({"image": X}, [IMAGE])["image"], X)


def test_several_inputs_by_name_and_labels_ignored(tmp_path):
    mask, labels = np.ones(5, bool), np.arange(5)
    path = save(tmp_path / "x.npz", label=labels, mask=mask, image=X)
    feeds = load_data(path, [IMAGE, MASK])
    assert list(feeds) == ["image", "mask"]
    np.testing.assert_array_equal(feeds["mask"], mask)


def test_the_only_array_that_fits_one_input_is_taken_whatever_its_name(tmp_path):
    path = save(tmp_path / "x.npz", pixels=X, y=np.arange(5))
    np.testing.assert_array_equal(load_data(path, [IMAGE])["image"], X)


def test_two_arrays_that_fit_are_not_guessed_at(tmp_path):
    path = save(tmp_path / "x.npz", a=X, b=X)
    with pytest.raises(DataError, match=r"no array for input 'image', float32.*'a' .*'b'"):
        load_data(path, [IMAGE])


def test_folder_of_onnx_test_data(tmp_path):
    save(tmp_path / "input_0.pb", x=X)
    save(tmp_path / "input_1.pb", x=np.ones(5, bool))
    feeds = load_data(tmp_path, [IMAGE, MASK])
    np.testing.assert_array_equal(feeds["image"], X)
    assert feeds["mask"].all()
    with pytest.raises(DataError, match=r"no input_2\.pb.*3 inputs"):
        load_data(tmp_path, [IMAGE, MASK, ModelInput("z", F4, ())])


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (
            X.astype(np.float64),
            r"input 'image': expected float32.*got float64.*astype\('float32'\)",
        ),
        (X[0], r"got float32 of shape \(3, 2, 8\): it has 3 dimensions in place of 4"),
        (X[:, :2], "axis 1 has 2 in place of 3"),
        (X[..., :4], "axis 3 has 4 in place of 8"),
        (X[:0], "it is empty"),
        (X.astype(complex), "got complex128"),
    ],
)
def test_what_does_not_fit_is_named(array, match):
    with pytest.raises(DataError, match=match):
        load_data(array, [IMAGE])


def test_a_missing_input_is_named():
    with pytest.raises(DataError, match="no array for input 'mask', bool of shape"):
        load_data({"image": X}, [IMAGE, MASK])


def test_one_array_for_two_inputs_is_an_error():
    with pytest.raises(DataError, match="the model has 2 inputs: 'image', 'mask'"):
        load_data(X, [IMAGE, MASK])


def test_pickles_are_refused(tmp_path):
    objects = np.array([{"a": 1}], dtype=object)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="cannot be read"):
            load_data(save(tmp_path / name, image=objects), [IMAGE])


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pb"])
@pytest.mark.parametrize("content", [b"", b"not an array"])
def test_broken_files(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: "):
        load_data(path, [IMAGE])


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pb"])
def test_truncated_files(tmp_path, name):
    path = save(tmp_path / name, image=X)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{name}: "):
        load_data(path, [IMAGE])


def test_missing_file_and_unknown_extension(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npz: no such file"):
        load_data(tmp_path / "nowhere.npz", [IMAGE])
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"expected \.npy, \.npz, \.pb or a folder.*got \.csv"):
        load_data(tmp_path / "x.csv", [IMAGE])


def sizes(feeds, inputs, **kwargs):
    return [len(part["image"]) for part in batches(feeds, inputs, **kwargs)]


def test_an_open_batch_is_cut_into_equal_parts():
    feeds = {"image": np.zeros((65, 3, 1, 8), F4)}
    assert sizes(feeds, [IMAGE]) == [21, 22, 22]
    assert sizes(feeds, [IMAGE], largest=65) == [65]


def test_no_part_is_a_single_sample():
    assert sizes({"image": np.zeros((33, 3, 1, 8), F4)}, [IMAGE]) == [16, 17]


@pytest.mark.parametrize(("fixed", "expected"), [(1, [1] * 5), (2, [2, 2, 2]), (5, [5])])
def test_a_fixed_batch_size_is_kept_and_every_sample_seen(fixed, expected):
    declared = ModelInput("image", F4, (fixed, 3, 2, 8))
    feeds = load_data(X, [declared])
    parts = list(batches(feeds, [declared]))
    assert [len(part["image"]) for part in parts] == expected
    seen = {sample.tobytes() for part in parts for sample in part["image"]}
    assert seen == {sample.tobytes() for sample in X}


def test_fewer_samples_than_a_fixed_batch_size_is_an_error():
    with pytest.raises(DataError, match="takes 6 along the first axis, got 5"):
        load_data(X, [ModelInput("image", F4, (6, 3, 2, 8))])


def test_inputs_are_cut_together():
    feeds = {"image": X, "mask": np.arange(5) > 2}
    parts = list(batches(feeds, [IMAGE, MASK], largest=2))
    np.testing.assert_array_equal(np.concatenate([part["mask"] for part in parts]), feeds["mask"])
    assert [len(part["image"]) for part in parts] == [1, 2, 2]


def test_inputs_of_different_lengths_go_in_whole():
    inputs = [IMAGE, ModelInput("anchors", F4, ("A", 4))]
    feeds = load_data({"image": X, "anchors": np.zeros((9, 4), F4)}, inputs)
    assert sizes(feeds, inputs, largest=2) == [5]


def test_a_fixed_first_axis_beside_an_open_one_keeps_the_data_whole():
    inputs = [IMAGE, ModelInput("anchors", F4, (5, 4))]
    feeds = load_data({"image": X, "anchors": np.zeros((5, 4), F4)}, inputs)
    assert sizes(feeds, inputs, largest=2) == [5]
