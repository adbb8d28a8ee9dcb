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
    assert len(files(folder)) == 2
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
    with pytest.raises(OSError, match="no space"):
        tensors.put(0, {"a": SMALL + 1})
    assert same(tensors.get(0, "a"), SMALL)
