"""Where a command writes to is looked at before any work, and the option is named."""

from __future__ import annotations

import numpy as np
import pytest
from corruptions import DIGITS, load_digits

MODEL = DIGITS / "digits.onnx"
WEIGHTS = (DIGITS / "digits.safetensors", "--prefix", "bn1")

# What goes before each option that names a file to write. None of the inputs is ever read.
COMMANDS = [
    (("fold", MODEL), "--output"),
    (("freeze", MODEL), "--output"),
    (("lower", MODEL), "--output"),
    (("export", *WEIGHTS), "--output"),
    (("stats", "export", MODEL), "--output"),
    (("stats", "apply", MODEL, "none.safetensors"), "--output"),
    (("stats", "blend", "none", "none", "--weight", 0.5), "--output"),
    (("drift", MODEL, "--data", "none.npy"), "--report"),
    (("recalibrate", MODEL, "--data", "none.npy"), "--output"),
    (("recalibrate", MODEL, "--data", "none.npy", "-o", "out.onnx"), "--report"),
    (("recalibrate", MODEL, "--data", "none.npy", "-o", "out.onnx"), "--stats"),
    (("recalibrate", MODEL, "--data", "none.npy", "-o", "out.onnx"), "--checkpoint"),
]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (".", "got '.': it is a folder"),
        ("", "got '.': it is a folder"),
        ("/", "got '/': it is a folder"),
        ("none/out", "got 'none/out': there is no folder /"),
        ("/dev/null", "got '/dev/null': it is a device, pipe or socket, not a file"),
    ],
)
@pytest.mark.parametrize(("arguments", "option"), COMMANDS)
def test_what_is_no_place_for_a_file(invoke, tmp_path, monkeypatch, arguments, option, given, said):
    monkeypatch.chdir(tmp_path)
    shown = invoke(*arguments, option, given)
    assert (shown.exit_code, shown.stdout) == (2, "")
    (line,) = shown.stderr.splitlines()
    begin = f"cbn: error: {option}: expected the name of a file to write, "
    assert line.startswith(begin + said)
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_no_place_either(invoke, tmp_path):
    data = tmp_path / "x.npy"
    np.save(data, load_digits()[0])
    before = data.read_bytes()
    arguments = ("recalibrate", MODEL, "--data", data)
    for option, others in (("--output", ()), ("--checkpoint", ("-o", tmp_path / "out.onnx"))):
        shown = invoke(*arguments, option, data, *others)
        assert shown.exit_code == 2
        assert f"{option}: the output would overwrite an input, {data}" in shown.stderr
    assert data.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
