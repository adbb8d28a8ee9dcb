"""Tensors between two stages: in memory up to a limit, in files beyond it, and none left behind."""

from __future__ import annotations

import numpy as np
import pytest

from cbn.export.recalibration.measure.checkpoint import CheckpointError
from cbn.export.recalibration.measure.tensors import KeptTensors, ScratchTensors

LARGE = np.arange(40_000, dtype="float32").reshape(4, 100, 100)
SMALL = np.arange(6, dtype="int64")
WORDS = np.array(["one", "zwölf"], dtype=object)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(one, two):
    return one.dtype == two.dtype and one.shape == two.shape and (one == two).all()


def test_what_fits_stays_in_memory_as_it_is(tmp_path):
    with ScratchTensors(LARGE.nbytes, tmp_path) as tensors:
        tensors.put(0, {"a": LARGE})
        assert tensors.get(0, "a") is LARGE
        assert files(tmp_path) == []


def test_what_is_let_go_makes_room(tmp_path):
    with ScratchTensors(LARGE.nbytes, tmp_path) as tensors:
        for batch in range(3):
            tensors.put(batch, {"a": LARGE})
            assert tensors.get(batch, "a") is LARGE
            tensors.free(batch, "a")
        with pytest.raises(KeyError):
            tensors.get(0, "a")


def test_what_does_not_fit_goes_into_a_file_until_it_is_let_go(tmp_path):
    with ScratchTensors(LARGE.nbytes, tmp_path) as tensors:
        tensors.put(0, {"a": LARGE, "b": LARGE + 1})
        tensors.put(1, {"a": WORDS})
        assert len(files(tmp_path)) == 2
        assert isinstance(tensors.get(0, "b"), np.memmap)
        assert same(tensors.get(0, "b"), LARGE + 1)
        assert same(tensors.get(1, "a"), WORDS)
        tensors.free(0, "b")
        assert len(files(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_kept_tensors_outlive_the_object(tmp_path):
    folder = tmp_path / "run.tensors"
    KeptTensors(folder).put(3, {"a": LARGE, "a/b: c": SMALL, "w": WORDS})
    again = KeptTensors(folder)
    for name, array in (("a", LARGE), ("a/b: c", SMALL), ("w", WORDS)):
        assert same(again.get(3, name), array)
    again.free(3, "a")
    again.free(3, "a")
    with pytest.raises(CheckpointError, match=r"run\.tensors lacks 3-"):
        again.get(3, "a")
    assert len(list(folder.glob("*.npy"))) == 2
    again.remove()
    again.remove()
    assert not folder.exists()


def test_a_write_that_fails_leaves_the_tensor_before(tmp_path, monkeypatch):
    tensors = KeptTensors(tmp_path / "run.tensors")
    tensors.put(0, {"a": SMALL})

    def fail(path, array, **options):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(
        OSError, match=r"cannot write \S+run\.tensors/0-\S+: no space left; make room"
    ):
        tensors.put(0, {"a": SMALL + 1})
    assert same(tensors.get(0, "a"), SMALL)
    assert not list(tensors.folder.glob("*.partial*"))
    with (
        ScratchTensors(0, tmp_path) as scratch,
        pytest.raises(OSError, match=r"1\.npy: .*no space left; give another scratch folder"),
    ):
        scratch.put(0, {"a": SMALL})


@pytest.mark.parametrize("name", ["thesis.npy", "notes", "0-me.npy"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    folder = tmp_path / "run.tensors"
    folder.mkdir()
    (folder / name).write_text("mine")
    tensors = KeptTensors(folder)
    with pytest.raises(CheckpointError, match=r"run\.tensors: holds files of something else"):
        tensors.put(0, {"a": SMALL})
    tensors.remove()
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]


def test_what_others_put_into_the_folder_stays(tmp_path):
    tensors = KeptTensors(tmp_path / "run.tensors")
    tensors.put(0, {"a": SMALL})
    (tensors.folder / "thesis.npy").write_text("mine")
    tensors.remove()
    assert [path.name for path in files(tmp_path)] == ["thesis.npy"]


def test_an_empty_folder_is_taken_and_a_file_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    KeptTensors(tmp_path / "empty").put(0, {"a": SMALL})
    assert same(KeptTensors(tmp_path / "empty").get(0, "a"), SMALL)
    (tmp_path / "file").write_text("mine")
    tensors = KeptTensors(tmp_path / "file")
    with pytest.raises(CheckpointError, match="file: a file, where the checkpoint needs a folder"):
        tensors.put(0, {"a": SMALL})
    tensors.remove()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("array", [SMALL, LARGE, WORDS], ids=["small", "mapped", "words"])
@pytest.mark.parametrize("cut", [0, 5, 50, -1, None], ids=str)
def test_a_damaged_file_is_an_error_that_says_so(tmp_path, array, cut):
    tensors = KeptTensors(tmp_path / "run.tensors")
    tensors.put(0, {"a": array})
    (path,) = tensors.folder.glob("*.npy")
    content = path.read_bytes()
    zeroed = content[:-40] + bytes(32) + content[-8:]  # as after a torn write
    path.write_bytes(zeroed if cut is None else content[:cut])
    with pytest.raises(CheckpointError, match=r"\.npy is damaged.*delete both to start anew"):
        tensors.get(0, "a")
