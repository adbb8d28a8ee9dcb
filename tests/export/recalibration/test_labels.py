"""Labels from files, arrays and folders, one for each sample."""

from __future__ import annotations

import numpy as np
import pytest

from cbn.export.data import DataError
from cbn.export.inputs import ModelInput
from cbn.export.recalibration.data.labels import read_labels
from cbn.export.recalibration.data.sources import open_source, split

IMAGE = ModelInput("image", np.dtype(np.float32), ("N", 2))
VALUES = np.array([3, 1, 4, 1, 5])
NAMES = ("cat/a.png", "cat/b.png", "dog/c.png")


def write(folder, name, content):
    path = folder / name
    if isinstance(content, str):
        path.write_text(content)
    elif name.endswith(".npy"):
        np.save(path, content)
    else:
        np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", VALUES),
        ("x.npy", VALUES.astype(np.uint8)[:, None]),
        ("x.npz", {"labels": VALUES, "x": np.zeros(5)}),
        ("x.npz", {"label": VALUES}),
        ("x.txt", "3\n1\n4\n1\n5\n"),
        ("x.csv", "label\n3\n1\n\n4\n1\n5"),
    ],
)
def test_files(tmp_path, name, content):
    labels = read_labels(write(tmp_path, name, content), 5)
    np.testing.assert_array_equal(labels.values, VALUES)
    assert labels.values.dtype == np.int64


def test_an_array_of_an_archive_by_name(tmp_path):
    path = write(tmp_path, "x.npz", {"labels": VALUES, "night": VALUES + 1})
    np.testing.assert_array_equal(read_labels(f"{path}:night").values, VALUES + 1)
    with pytest.raises(DataError, match=r"no array 'day'; it has labels, night"):
        read_labels(f"{path}:day")


def test_arrays_and_lists():
    np.testing.assert_array_equal(read_labels(VALUES).values, VALUES)
    np.testing.assert_array_equal(read_labels(VALUES.tolist()).values, VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "cat/b.png,1\ncat/a.png,0\ndog/c.png,2\n",
        "file,class\nb.png, 1\na.png, 0\nc.png, 2\n",
        "cat\\a.png,0\n./cat/b.png,1\ndog/c.png,2\nnot_there.png,9\n",
    ],
    ids=["paths", "names", "other ways to write them"],
)
def test_rows_by_file_name(tmp_path, text):
    labels = read_labels(write(tmp_path, "x.csv", text), 3, NAMES)
    np.testing.assert_array_equal(labels.values, [0, 1, 2])


def test_a_name_that_two_folders_have_is_no_match(tmp_path):
    path = write(tmp_path, "x.csv", "a.png,1\n")
    with pytest.raises(DataError, match=r"no label for cat/a.png and 1 more of 2 images"):
        read_labels(path, 2, ("cat/a.png", "dog/a.png"))


def test_folders_are_numbered_by_name():
    labels = read_labels("folders", 3, NAMES)
    np.testing.assert_array_equal(labels.values, [0, 0, 1])
    assert labels.classes == ("cat", "dog")


def test_folders_named_by_numbers_stand_for_them():
    names = ("10/a.png", "2/b.png", "7/more/c.png")
    np.testing.assert_array_equal(read_labels("folders", 3, names).values, [10, 2, 7])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", np.ones(5), "expected whole numbers of shape .*got float64"),
        ("x.npy", np.ones((5, 2), int), r"got int64 of shape \(5, 2\)"),
        ("x.npz", {"y": VALUES}, "no array 'labels' or 'label'; it has y"),
        ("x.txt", "1\n2\ncat\n", r"x.txt, line 3: expected a whole number.*got 'cat'"),
        ("x.txt", "1\n2.5\n", r"line 2: .*got '2.5'"),
        ("x.csv", "a,b,1\n", r"line 1: .*got 'a, b, 1'"),
        ("x.csv", "a.png,1\n", "labels by file name are for images"),
        ("x.csv", "1\n2\n", "got 2 labels for 5 samples"),
        ("x.json", "[]", "expected .npy, .npz"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if name.endswith("json"):
        path.write_text(content)
    else:
        write(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_labels(path, 5)


def test_a_missing_file_and_folders_without_images():
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_labels("none.csv")
    with pytest.raises(DataError, match="'folders' are for images"):
        read_labels("folders", 3)
    with pytest.raises(DataError, match=r"image a\.png lies in no folder"):
        read_labels("folders", 1, ("a.png",))


def test_a_batch_takes_its_own():
    labels = read_labels(VALUES)
    np.testing.assert_array_equal(labels.take(1, 3), [1, 4, 1])
    with pytest.raises(DataError, match="got 5 labels for 6 samples or more"):
        labels.take(3, 3)


@pytest.mark.parametrize("as_list", [False, True])
def test_labels_stay_with_their_samples(as_list):
    array = np.arange(140, dtype=np.float32).reshape(70, 2)
    data = [array[:30], array[30:]] if as_list else array
    source = open_source(data, [IMAGE], labels=np.arange(70), limit=60, batch_size=8)
    for part in (source, *split(source)):
        for feeds, first in part.numbered():
            labels = part.labels.take(first, len(feeds["image"]))
            np.testing.assert_array_equal(feeds["image"][:, 0] / 2, labels)


@pytest.mark.parametrize("once", [False, True])
def test_an_iterable_must_have_as_many_samples_as_labels(once):
    batches = [np.zeros((5, 2), np.float32)] * 3
    data = iter(batches) if once else batches
    with pytest.raises(DataError, match="got 14 labels for 15 samples"):
        list(open_source(data, [IMAGE], labels=range(14)))


def test_labels_after_the_limit_are_not_used():
    batches = (np.zeros((5, 2), np.float32) for _ in range(9))
    source = open_source(batches, [IMAGE], labels=range(45), limit=10)
    assert [len(feeds["image"]) for feeds in source] == [5, 5]
    np.testing.assert_array_equal(source.labels.values, range(10))


def test_a_sample_that_a_fixed_batch_leaves_out_takes_its_label_along(tmp_path):
    fixed = ModelInput("image", np.dtype(np.float32), (4, None))
    arrays = [np.full((6, 2), 2, np.float32), np.full((5, 3), 3, np.float32)]
    for array in arrays:
        np.save(tmp_path / f"{array.shape[1]}.npy", array)
    labels = [2] * 6 + [3] * 5
    source = open_source(tmp_path, [fixed], labels=labels)
    assert source.notes == ("3 of 11 samples are left out: the model takes batches of 4",)
    np.testing.assert_array_equal(source.labels.values, [2] * 4 + [3] * 4)
    with pytest.raises(DataError, match="samples of several shapes"):
        list(open_source(arrays, [fixed], labels=labels))
