"""The script of the tutorial: its table is the one in the documentation, its plot and data are."""

from __future__ import annotations

import re
import runpy
import sys

import numpy as np
import pytest
from corruptions import DIGITS, fog, load_digits

PAGE = DIGITS.parents[1] / "docs" / "recalibration.md"
ROW = re.compile(r"^(\w+) +([\d.]+)% +([\d.]+)% +(\d+)%$", re.MULTILINE)


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(DIGITS / "recalibrate.py"))


@pytest.fixture(scope="module")
def rows(script):
    return script["measure"]()


def test_the_table_of_the_page_is_what_the_script_prints(script, rows):
    shown, printed = (ROW.findall(text) for text in (PAGE.read_text(), script["table"](rows)))
    assert [row[0] for row in shown] == [row[0] for row in printed]
    assert len(shown) == 9
    for one, other in zip(shown, printed, strict=True):
        apart = np.abs(np.array(one[1:], float) - np.array(other[1:], float))
        assert apart[:2].max() <= 0.7  # three images of 450, where another CPU rounds otherwise
        assert apart[2] == 0


@pytest.mark.parametrize("name", ["accuracy.svg", "accuracy.png"])
def test_the_plot(script, rows, tmp_path, name):
    pytest.importorskip("matplotlib", reason="needs the extra [bench]")
    path = tmp_path / name
    script["plot"](rows, path)
    if path.suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG")
        return
    text = path.read_text()
    for row in rows:
        assert f">{row.stored:.1%}<" in text
        assert f">{row.recalibrated:.1%}<" in text
        assert row.corruption.replace("_", " ") in text


def test_the_corrupted_digits(script, tmp_path, monkeypatch):
    path = tmp_path / "fog.npz"
    monkeypatch.setattr(sys, "argv", ["recalibrate.py", "--save", "fog", str(path)])
    script["main"]()
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["image"], fog(load_digits()[0]))
        assert arrays["label"].shape == (450,)
