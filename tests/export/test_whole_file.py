"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cbn.export.whole_file import WriteError, obstacle, whole_file


@pytest.fixture(params=["fresh", "named"])
def partial(request, tmp_path):
    """The name to write under: one that is made up, and one of the caller's."""
    return None if request.param == "fresh" else tmp_path / ".a.txt.partial"


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_target_is_as_before_until_the_block_is_through(target, partial):
    with whole_file(target, partial=partial) as written:
        written.write_text("new")
        assert target.read_text() == "old"
        assert written.parent.is_relative_to(target.parent)
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()])
def test_what_goes_wrong_in_the_block_leaves_the_old_file(target, partial, error):
    def write() -> None:
        with whole_file(target, partial=partial) as written:
            written.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_the_system_refuses_names_the_file(target, partial, monkeypatch, step):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with (
        pytest.raises(WriteError, match=r"^cannot write \S+/a\.txt: No space left on device$") as e,
        whole_file(target, partial=partial) as written,
    ):
        written.write_text("new")
    assert (e.value.errno, e.value.reason) == (28, "No space left on device")
    assert target.read_text() == "old"
    assert names(target.parent) == ["a.txt"]


def test_it_is_on_the_disk_before_it_has_its_name(target, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda _: done.append(target.read_text()))
    with whole_file(target) as written:
        written.write_text("new")
    assert done == ["old"]


def test_files_beside_it_come_first(target, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    with whole_file(target) as written:
        written.write_text("new")
        written.with_name("a.data").write_text("more")
    assert order == ["a.data", "a.txt"]
    assert names(target.parent) == ["a.data", "a.txt"]


def test_a_link_stays_one(target, partial):
    link = target.with_name("link")
    link.symlink_to(target)
    with whole_file(link, partial=partial) as written:
        written.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_it_has_the_rights_that_files_have(tmp_path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "new") as written:
        written.touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_stands_in_the_way_is_said_before_anything_is_written(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in (
        (tmp_path, "it is a folder"),
        (pipe, "it is a device, pipe or socket, not a file"),
        (tmp_path / "none" / "a.txt", f"there is no folder {tmp_path / 'none'}"),
    ):
        assert obstacle(path) == reason
        with pytest.raises(WriteError, match=reason), whole_file(path):
            raise AssertionError("never reached")
    assert obstacle(tmp_path / "a.txt") == ""
    assert names(tmp_path) == ["pipe"]
