"""Data of any form as batches that fit a model, in order, a few samples in memory at a time."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import onnx
import pytest

from cbn.export.data import DataError
from cbn.export.inputs import ModelInput
from cbn.export.recalibration.data.sources import open_source, split

F4 = np.dtype(np.float32)
IMAGE = ModelInput("image", F4, ("N", 2, 3))
BOX = ModelInput("box", F4, ("N", 4))
FOUR = ModelInput("image", F4, (4, 2, 3))
SCALAR = ModelInput("threshold", F4, ())
X = np.arange(70 * 6, dtype=np.float32).reshape(70, 2, 3)
B = np.arange(70 * 4, dtype=np.float32).reshape(70, 4)


def whole(source, name="image"):
    return np.concatenate([feeds[name] for feeds in source])


def sizes(source, name="image"):
    return [len(feeds[name]) for feeds in source]


def write_tensor(path, array):
    path.write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())


def npy(folder):
    np.save(folder / "x.npy", X)
    return folder / "x.npy"


def npz(folder):
    np.savez(folder / "x.npz", other=np.arange(9), image=X)
    return folder / "x.npz"


def compressed(folder):
    np.savez_compressed(folder / "x.npz", pixels=X)
    return folder / "x.npz"


def fortran(folder):
    np.savez(folder / "x.npz", image=np.asfortranarray(X))
    return folder / "x.npz"


def folder_of_both(folder):
    for index, (start, stop) in enumerate(itertools.pairwise([0, 5, 30, 70])):
        name = folder / f"part{index + 9}"  # part10 comes after part9
        if index % 2:
            np.savez(name, image=X[start:stop])
        else:
            np.save(name, X[start:stop])
    return folder


def tensor(folder):
    write_tensor(folder / "x.pb", X)
    return folder / "x.pb"


def onnx_data(folder):
    write_tensor(folder / "input_0.pb", X)
    return folder


def onnx_data_sets(folder):
    for index in range(14):
        inside = folder / f"test_data_set_{index}"
        inside.mkdir()
        write_tensor(inside / "input_0.pb", X[5 * index : 5 * index + 5])
    return folder


def script(folder):
    np.save(folder / "x.npy", X)
    (folder / "load.py").write_text(
        "from pathlib import Path\nimport numpy as np\n"
        "def batches():\n    x = np.load(Path(__file__).with_name('x.npy'))\n"
        "    for start in range(0, 70, 10):\n        yield x[start:start + 10]\n"
        "def array():\n    return np.load(Path(__file__).with_name('x.npy'))\n"
    )
    return f"{folder / 'load.py'}:batches"


def script_of_an_array(folder):
    return script(folder).replace("batches", "array")


def parts():
    return [X[start : start + 10] for start in range(0, 70, 10)]


FILES = [npy, npz, compressed, fortran, folder_of_both, tensor, onnx_data, onnx_data_sets]
FILES += [script, script_of_an_array]
OBJECTS = {
    "array": X,
    "mapping": {"image": X},
    "list of arrays": parts(),
    "list of tuples": [(part,) for part in parts()],
    "list of mappings": [{"image": part} for part in parts()],
    "function": lambda: iter(parts()),
    "function of an array": lambda: X,
}


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_files_give_all_samples_in_order_again_and_again(tmp_path, make):
    source = open_source(make(tmp_path), [IMAGE])
    np.testing.assert_array_equal(whole(source), X)
    np.testing.assert_array_equal(whole(source), X)
    assert source.samples == 70


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_give_all_samples_in_order_again_and_again(name):
    source = open_source(OBJECTS[name], [IMAGE])
    np.testing.assert_array_equal(whole(source), X)
    np.testing.assert_array_equal(whole(source), X)
    assert source.samples == 70
    assert source.batches == len(sizes(source))


@pytest.mark.parametrize(
    "data", [X, parts(), npz, folder_of_both], ids=["array", "list", "npz", "folder"]
)
@pytest.mark.parametrize("size", [1, 7, 32, 64, 200])
def test_batch_size_is_obeyed_and_loses_nothing(tmp_path, data, size):
    source = open_source(data(tmp_path) if callable(data) else data, [IMAGE], batch_size=size)
    assert max(sizes(source)) <= size
    assert len(sizes(source)) == -(-70 // size)
    np.testing.assert_array_equal(whole(source), X)


def test_batches_of_an_iterable_stay_as_they_come():
    assert sizes(open_source([X[:3], X[3:40], X[40:41]], [IMAGE])) == [3, 37, 1]


TAKEN = "array 'pixels' is taken for the input 'image', as the only one that fits"


def test_an_array_that_goes_to_an_input_of_another_name_is_said(tmp_path):
    other = {"pixels": X, "label": np.arange(70)}
    for index in range(2):
        np.savez(tmp_path / f"{index}.npz", **other)
    for data in (
        tmp_path / "0.npz",
        tmp_path,
        other,
        [other, other],
        (batch for batch in [other, other]),
        lambda: iter([other, other]),
    ):
        source = open_source(data, [IMAGE])
        assert source.notes == (TAKEN,)
        assert [part.notes for part in split(source)] == [(TAKEN,), (TAKEN,)]
    for data in (npy(tmp_path), {"image": X}, [{"image": X}], [X], X):
        assert open_source(data, [IMAGE]).notes == ()


@pytest.mark.parametrize("data", [X, parts()], ids=["array", "list"])
def test_a_fixed_batch_size_leaves_a_rest_out_and_says_so(data):
    source = open_source(data, [FOUR])
    assert sizes(source) == [4] * 17
    assert source.samples == 68
    assert source.notes == ("2 of 70 samples are left out: the model takes batches of 4",)


@pytest.mark.parametrize("data", [X[:3], [X[:3]]], ids=["array", "list"])
def test_less_than_one_fixed_batch_is_refused(data):
    with pytest.raises(DataError, match="the model takes batches of 4 samples, got 3"):
        list(open_source(data, [FOUR]))


def test_another_batch_size_than_the_fixed_one_is_refused():
    with pytest.raises(DataError, match="takes batches of 4 samples, got batch_size 8"):
        open_source(X, [FOUR], batch_size=8)


def test_several_inputs_are_cut_alike(tmp_path):
    np.savez(tmp_path / "x.npz", box=B, image=X)
    for data in (tmp_path / "x.npz", [(X, B)], {"image": X, "box": B}):
        source = open_source(data, [IMAGE, BOX], batch_size=8)
        assert [list(feeds) for feeds in source] == [["image", "box"]] * 9
        np.testing.assert_array_equal(whole(source, "box"), B)
        np.testing.assert_array_equal(whole(source), X)


def test_inputs_without_a_common_axis_go_in_whole(tmp_path):
    for index in range(2):
        threshold = np.array(index, np.float32)
        np.savez(tmp_path / f"{index}.npz", image=X, threshold=threshold)
    source = open_source(tmp_path, [IMAGE, SCALAR], batch_size=8)
    assert sizes(source) == [70, 70]
    assert [float(feeds["threshold"]) for feeds in source] == [0, 1]


def test_samples_of_different_shape_are_never_in_one_batch(tmp_path):
    free = ModelInput("image", F4, ("N", 2, None))
    shapes = [(5, 2, 3), (4, 2, 3), (6, 2, 5)]
    arrays = [np.full(shape, index, np.float32) for index, shape in enumerate(shapes)]
    for index, array in enumerate(arrays):
        np.save(tmp_path / f"{index}.npy", array)
    for data in (tmp_path, arrays):
        batches = [feeds["image"].shape for feeds in open_source(data, [free], batch_size=9)]
        assert batches == [(9, 2, 3), (6, 2, 5)]


def test_numbered_goes_on_from_a_batch(tmp_path):
    for data in (npz(tmp_path), parts()):
        source = open_source(data, [IMAGE], batch_size=8)
        batches = [(first, feeds["image"]) for feeds, first in source.numbered()]
        later = [(first, feeds["image"]) for feeds, first in source.numbered(5)]
        assert [first for first, _ in batches] == list(
            np.cumsum([0, *(len(array) for _, array in batches)])[:-1]
        )
        assert len(later) == 4
        for (first, array), (again, same) in zip(batches[5:], later, strict=True):
            assert first == again
            np.testing.assert_array_equal(array, same)


def test_a_generator_is_copied_to_a_folder_that_goes_with_it():
    source = open_source(iter(parts()), [IMAGE], batch_size=7)
    rest, held = split(source)
    folder = source._open.folder
    assert len(list(folder.iterdir())) == 7
    np.testing.assert_array_equal(whole(source), X)
    assert (source.samples, rest.samples, held.samples) == (70, 56, 14)
    del source, rest, held
    gc.collect()
    assert not folder.exists()


def test_a_generator_may_use_its_buffer_again():
    def reuse():
        buffer = np.empty((10, 2, 3), np.float32)
        for part in parts():
            buffer[:] = part
            yield buffer

    np.testing.assert_array_equal(whole(open_source(reuse, [IMAGE], batch_size=35)), X)


def test_an_endless_generator_ends_at_the_limit():
    endless = ({"image": X[index % 70][None]} for index in itertools.count())
    assert whole(open_source(endless, [IMAGE], limit=80)).shape == (80, 2, 3)


def test_the_limit_takes_samples_from_everywhere_and_the_first_of_an_iterable():
    spread = whole(open_source(X, [IMAGE], limit=10))[:, 0, 0] / 6
    np.testing.assert_array_equal(spread, np.arange(0, 70, 7))
    source = open_source(parts(), [IMAGE], limit=15)
    np.testing.assert_array_equal(whole(source), X[:15])
    assert source.samples == 15


def test_anything_that_slices_is_read_in_slices():
    class Lazy:
        dtype, shape = F4, (70, 2, 3)
        largest = 0

        def __getitem__(self, rows):
            self.largest = max(self.largest, len(X[rows]))
            return X[rows]

    lazy = Lazy()
    np.testing.assert_array_equal(whole(open_source(lazy, [IMAGE], batch_size=8)), X)
    assert lazy.largest == 8


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_never_in_memory_whole(tmp_path, save):
    image = ModelInput("image", F4, ("N", 1024))
    big = np.zeros((8192, 1024), np.float32)
    save(tmp_path / "x.npz", image=big)
    source = open_source(tmp_path / "x.npz", [image], batch_size=64)
    del big
    tracemalloc.start()
    samples = sum(len(feeds["image"]) for feeds in source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == 8192
    assert peak < 4 * 2**20  # of 32 MiB; a batch is 256 KiB


def test_the_fingerprint_tells_data_and_cuts_apart(tmp_path):
    path = npy(tmp_path)
    first = open_source(path, [IMAGE])
    marks = [first, open_source(path, [IMAGE], batch_size=8), *split(first)]
    marks += [open_source(data, [IMAGE]) for data in (X, X + 1, parts(), [X[:5]])]
    found = [source.fingerprint() for source in marks]
    assert len(set(found)) == len(found)
    assert open_source(path, [IMAGE]).fingerprint() == found[0]
    assert open_source(X.copy(), [IMAGE]).fingerprint() == found[4]
    os.utime(path, (0, 0))
    assert open_source(path, [IMAGE]).fingerprint() != found[0]


def test_the_fingerprint_tells_what_begins_alike_apart(tmp_path):
    other = X.copy()
    other[33, 1, 1] += 1
    (tmp_path / "one.py").write_text(
        "import numpy\ndef f():\n    yield numpy.zeros((1, 2, 3), 'f')"
    )
    (tmp_path / "two.py").write_text((tmp_path / "one.py").read_text() + "  # changed")
    data = [X, other, iter(parts()), iter(np.split(other, 7))]
    data += [f"{tmp_path / name}:f" for name in ("one.py", "two.py")]
    found = [open_source(item, [IMAGE]).fingerprint() for item in data]
    assert len(set(found)) == len(found)
    assert open_source(iter(parts()), [IMAGE]).fingerprint() == found[2]
    assert open_source(data[4], [IMAGE]).fingerprint() == found[4]


def test_arrays_on_the_disk_are_told_by_some_of_their_rows(tmp_path):
    big = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", F4, (600, 2, 3))
    mark = open_source(big, [IMAGE]).fingerprint()
    big[301] = 1  # is not looked at
    assert open_source(big, [IMAGE]).fingerprint() == mark
    big[2] = 1
    assert open_source(big, [IMAGE]).fingerprint() != mark


def test_what_is_shuffled_anew_on_each_pass_is_refused():
    generator = np.random.default_rng(0)

    def shuffled():
        return iter([X[rows] for rows in np.split(generator.permutation(70), 7)])

    message = "the data: gives other batches on each pass: switch shuffling"
    with pytest.raises(DataError, match=message):
        list(open_source(shuffled, [IMAGE]))
    with pytest.raises(DataError, match=message):
        split(open_source(shuffled, [IMAGE]))
    source = open_source(parts(), [IMAGE])
    source._open = shuffled
    with pytest.raises(DataError, match=message):
        source.select([(20, 30)])  # whose own first batch is another


def test_what_does_not_fit_is_named(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X.astype(np.float64))
    with pytest.raises(DataError, match=r"b\.npy: input 'image': .*the type differs"):
        open_source(tmp_path, [IMAGE])
    with pytest.raises(DataError, match=r"the data, batch 1: input 'image': .*axis 2 has 2"):
        list(open_source([X, X[:, :, :2]], [IMAGE]))
    with pytest.raises(DataError, match=r"batch 0: expected an array for each .*'image', got 2"):
        open_source([(X, np.arange(70))], [IMAGE])
    with pytest.raises(DataError, match="batch 0: it has no array for input 'image'"):
        open_source([{"x": X[0]}], [IMAGE])


def test_broken_files_are_named(tmp_path):
    whole_file = npz(tmp_path).read_bytes()
    (tmp_path / "x.npz").write_bytes(whole_file[:-100])
    with pytest.raises(DataError, match=r"x\.npz: cannot be read"):
        open_source(tmp_path / "x.npz", [IMAGE])
    (tmp_path / "y.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"y\.npy: cannot be read"):
        open_source(tmp_path / "y.npy", [IMAGE])
    np.savez(tmp_path / "z.npz", image=np.array([{}] * 3))
    with pytest.raises(DataError, match=r"z\.npz: input 'image': .*got object"):
        open_source(tmp_path / "z.npz", [IMAGE])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing.npy", "nothing.npy: no such file"),
        ("", "expected .npy, .npz"),
        ("x.txt", r"expected .npy, .npz.*got .txt"),
        ("load.py:none", "has no function 'none'"),
        ("load.py:fails", r"load.py:fails: RuntimeError: out of luck"),
        ("broken.py:any", "broken.py: SyntaxError"),
        (7, "expected data as a path.*got int"),
        ([], "there is no batch"),
        (X[:0], "it is empty"),
    ],
)
def test_errors_say_what_is_accepted(tmp_path, data, message):
    (tmp_path / "x.txt").write_text("1")
    (tmp_path / "load.py").write_text("def fails():\n    raise RuntimeError('out of luck')\n")
    (tmp_path / "broken.py").write_text("def")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / data if isinstance(data, str) else data, [IMAGE])


@pytest.mark.parametrize("name", ["batch_size", "limit"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(DataError, match=f"expected {name} of 1 or more, got 0"):
        open_source(X, [IMAGE], **{name: 0})


def test_a_source_is_taken_as_it_is():
    source = open_source(X, [IMAGE])
    assert open_source(source, [IMAGE]) is source
    with pytest.raises(ValueError, match="those that the source was opened with"):
        open_source(source, [IMAGE], labels=[1] * 70)


def test_optional_packages_are_not_imported():
    command = (
        "import sys; import cbn.export.recalibration.data.sources; "
        "import cbn.export.recalibration.measure.executors; "
        "sys.exit(', '.join({'PIL', 'dask', 'distributed'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.stderr == "\n"
