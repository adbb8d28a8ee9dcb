"""``cbn recalibrate``: what it prints, what it writes, and what it refuses to write."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corruptions import DIGITS, contrast, load_digits

from cbn import export

MODEL = DIGITS / "digits.onnx"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Digits of low contrast, with their labels."""
    images, labels = load_digits()
    path = tmp_path_factory.mktemp("data") / "dark.npz"
    np.savez(path, image=contrast(images), label=labels)
    return path


def test_from_a_model_to_a_better_one(command, data, tmp_path):
    out, page, stats = (tmp_path / name for name in ("out.onnx", "page.html", "s.safetensors"))
    arguments = ("recalibrate", MODEL, "--data", data, "-o", out, "--labels", data)
    shown = command(*arguments, "--report", page, "--stats", stats)
    assert (shown.exit_code, shown.stderr) == (0, "")
    header, _, first, *_ = shown.stdout.splitlines()
    assert header.split()[:3] == ["node", "action", "channels"]
    assert first.split()[0] == "/bn1/BatchNormalization"
    assert "passed: 5 of 5 nodes re-estimated on 360 samples" in shown.stdout
    assert "not worse" in shown.stdout
    written = [f"{path}: written" for path in (page, stats, out)]
    assert shown.stdout.splitlines()[-3:] == written
    assert "<html" in page.read_text()
    assert export.StatisticsBank.load(stats).apply(MODEL)
    before, after = (export.find_nodes(path)[0].var.array for path in (MODEL, out))
    assert (after < before).mean() > 0.8  # low contrast: small variances


def test_json_is_the_result_and_nothing_else(invoke, data, tmp_path):
    out = tmp_path / "out.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, "--json", "--prior", "0")
    assert (shown.exit_code, shown.stderr) == (0, "")
    found = json.loads(shown.stdout)
    assert (found["ok"], found["output"], found["prior"]["weight"]) == (True, str(out), 0)
    assert len(found["rows"]) == len(found["drift"]["rows"]) == 5


@pytest.fixture
def worse(tmp_path):
    """Digits of which half carry a wrong label that re-estimation makes wrong no more."""
    images, _ = load_digits()
    dark = contrast(images)
    session = export.make_session(MODEL)
    said = session.run(["logits"], {"image": dark})[0].argmax(axis=1)
    path = tmp_path / "worse.npz"
    np.savez(path, image=dark, label=said)
    return path


def test_a_model_whose_metric_fell_is_not_written(invoke, worse, tmp_path):
    out, stats = tmp_path / "out.onnx", tmp_path / "s.safetensors"
    arguments = ("recalibrate", MODEL, "--data", worse, "--labels", worse, "-o", out)
    arguments = (*arguments, "--prior", "0", "--stats", stats)
    shown = invoke(*arguments)
    assert shown.exit_code == 1
    assert "FAILED" in shown.stdout
    assert shown.stdout.splitlines()[-1] == (
        f"{out}: not written, since the metric got worse (--force writes it)"
    )
    assert not out.exists()
    assert not stats.exists()
    assert json.loads(invoke(*arguments, "--json").stdout)["output"] is None


def test_force_writes_it_all_the_same_and_still_says_so(invoke, worse, tmp_path):
    out = tmp_path / "out.onnx"
    arguments = ("recalibrate", MODEL, "--data", worse, "--labels", worse, "-o", out)
    shown = invoke(*arguments, "--prior", "0", "--force")
    assert shown.exit_code == 1
    assert shown.stdout.splitlines()[-1] == f"{out}: written all the same (--force)"
    assert export.find_nodes(out)


@pytest.mark.parametrize("prior", ["0", "64", "inf", "auto"])
def test_priors(invoke, data, tmp_path, prior):
    out = tmp_path / "out.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, "--prior", prior, "--json")
    assert shown.exit_code == 0
    weight = json.loads(shown.stdout)["prior"]["weight"]
    if prior != "auto":
        expected = {"0": 0, "64": 64 / (64 + 360), "inf": 1}[prior]
        assert weight == pytest.approx(expected, abs=1e-15)
    if weight == 1:
        shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, "--prior", prior)
        assert "nothing changed" in shown.stdout


@pytest.mark.parametrize("prior", ["much", "-1", "nan"])
def test_a_prior_is_auto_or_a_number(invoke, data, tmp_path, prior):
    out = tmp_path / "o.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, f"--prior={prior}")
    assert shown.exit_code == 2
    assert "expected auto or a number of samples" in shown.stderr


def test_options_reach_the_library(invoke, data, tmp_path, monkeypatch):
    given = {}

    def recalibrate(model, inputs, **options):
        given.update(options, data=inputs)
        raise ValueError("enough")

    monkeypatch.setattr(export, "recalibrate", recalibrate)
    given_text = (
        "--method sequential --prior 5 --labels l.npy --images i.toml --checkpoint c --scores s "
        "--dask tcp://h:1 --node a --node b* --batch-size 7 --limit 8 --held-out 0.3 --memory 2 "
        "--provider auto --seed 3 --threads 2"
    )
    arguments = given_text.split()
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", tmp_path / "o.onnx", *arguments)
    assert shown.exit_code == 2
    assert shown.stderr == f"cbn: error: {MODEL}: enough\n"
    assert given == {
        "data": str(data),
        "method": "sequential",
        "prior": 5.0,
        "labels": "l.npy",
        "images": Path("i.toml"),
        "scores": "s",
        "checkpoint": Path("c"),
        "keep_checkpoint": True,
        "executor": "tcp://h:1",
        "nodes": ["a", "b*"],
        "batch_size": 7,
        "limit": 8,
        "held_out": 0.3,
        "memory": 2 * 2**20,
        "providers": "auto",
        "seed": 3,
        "num_threads": 2,
        "progress": None,
    }


@pytest.mark.parametrize("option", ["-o", "--report", "--stats"])
def test_the_inputs_are_never_touched(invoke, data, tmp_path, option):
    before = data.read_bytes()
    others = () if option == "-o" else ("-o", tmp_path / "out.onnx")
    for given in (data, MODEL):
        shown = invoke("recalibrate", MODEL, "--data", data, option, given, *others)
        assert shown.exit_code == 2
        assert "the output would overwrite an input" in shown.stderr
    assert data.read_bytes() == before


def test_no_output_replaces_another_or_lies_in_the_data(invoke, data, tmp_path):
    out, toml, labels = tmp_path / "out.onnx", tmp_path / "i.toml", tmp_path / "l.npz"
    toml.write_text("")
    np.savez(labels, mine=load_digits()[1])
    folder = tmp_path / "inputs"
    folder.mkdir()
    np.save(folder / "a.npy", load_digits()[0])
    inputs, twice = "would overwrite an input", "named for two outputs"
    for arguments, words in (
        (("-o", out, "--report", out), twice),
        (("-o", out, "--stats", out), twice),
        (("-o", out, "--stats", f"{out}.data"), twice),
        (("-o", out, "--stats", tmp_path / "s", "--report", tmp_path / "s"), twice),
        (("-o", out, "--checkpoint", out), twice),
        (("-o", toml, "--images", toml), inputs),
        (("-o", labels, "--labels", f"{labels}:mine"), inputs),
        (("-o", folder / "out.onnx", "--data", folder), "in the folder of the data"),
        (("-o", out, "--data", folder, "--stats", folder / "s"), "in the folder of the data"),
        (("-o", out, "--data", folder, "--checkpoint", folder / "c"), "in the folder of the data"),
    ):
        shown = invoke("recalibrate", MODEL, "--data", data, *arguments)
        assert (shown.exit_code, shown.stdout) == (2, "")
        (line,) = shown.stderr.splitlines()
        assert words in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.toml", "inputs", "l.npz"]
    assert [path.name for path in folder.iterdir()] == ["a.npy"]


def test_a_checkpoint_lasts_until_the_model_is_written(invoke, worse, tmp_path, monkeypatch):
    out, kept = tmp_path / "out.onnx", tmp_path / "run.checkpoint"
    arguments = ("recalibrate", MODEL, "--data", worse, "--labels", worse, "-o", out)
    arguments = (*arguments, "--prior", "0", "--checkpoint", kept)
    shown = invoke(*arguments)
    assert shown.exit_code == 1
    assert f"{kept}: kept, the same command goes on from there" in shown.stdout
    assert kept.exists()
    with monkeypatch.context() as patch:

        def full(*given):
            raise OSError(28, "No space left on device")

        patch.setattr(export, "save", full)
        assert invoke(*arguments, "--force").exit_code == 2
    assert kept.exists()
    assert not out.exists()
    assert invoke(*arguments, "--force").exit_code == 1
    assert out.exists()
    assert not kept.exists()


def test_an_address_that_is_none_is_one_line_and_quick(invoke, data, tmp_path):
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    begun = time.monotonic()
    out = tmp_path / "out.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, "--dask", "rubbish")
    assert (shown.exit_code, shown.stdout) == (2, "")
    (line,) = shown.stderr.splitlines()
    assert "rubbish" in line
    assert time.monotonic() - begun < 20
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "none.npz"), "none.npz: no such file"),
        (("--data", "none.py:batches"), "none.py"),
        (("--data", "."), "."),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    invoke, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    shown = invoke("recalibrate", MODEL, "-o", "out.onnx", *arguments)
    assert (shown.exit_code, shown.stdout) == (2, "")
    (line,) = shown.stderr.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_extra_that_is_not_installed_is_one_line(invoke, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    out = tmp_path / "out.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, "--dask", "tcp://h:1")
    assert shown.exit_code == 2
    (line,) = shown.stderr.splitlines()
    assert line.startswith("cbn: error: ")
    assert line.endswith('pip install "cbn[dask]"')
    assert not out.exists()


def test_a_truncated_model_is_one_line(invoke, data, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(MODEL.read_bytes()[:60000])
    shown = invoke("recalibrate", path, "--data", data, "-o", tmp_path / "out.onnx")
    assert shown.exit_code == 2
    (line,) = shown.stderr.splitlines()
    assert line.startswith(f"cbn: error: {path}: ")
    assert not (tmp_path / "out.onnx").exists()


SLOW = """
import os
import time
import numpy as np

def batches():
    for index in range(200):
        time.sleep(float(os.environ["PAUSE"]))
        yield np.random.default_rng(index).uniform(size=(9, 1, 8, 8)).astype(np.float32)
"""


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(environment, invoke, tmp_path, monkeypatch):
    script, kept, out = tmp_path / "slow.py", tmp_path / "run.checkpoint", tmp_path / "out.onnx"
    script.write_text(SLOW)
    arguments = ["recalibrate", MODEL, "--data", f"{script}:batches", "-o", out, "--prior", "0"]
    arguments += ["--checkpoint", kept, "--held-out", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "cbn", *map(str, arguments)],
        env={**environment, "PAUSE": "0.02"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not kept.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "cbn: interrupted\n")
    assert kept.exists()
    assert not out.exists()
    monkeypatch.setenv("PAUSE", "0")
    shown = invoke(*arguments)
    assert shown.exit_code == 0
    assert "on 1800 samples" in shown.stdout
    assert not kept.exists()


def test_a_terminal_sees_how_far_it_is(environment, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW.replace("200", "30"))
    arguments = ["recalibrate", MODEL, "--data", f"{script}:batches"]
    arguments += ["-o", tmp_path / "out.onnx", "--prior", "0", "--held-out", "0"]
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cbn", *map(str, arguments)],
        env={**environment, "TERM": "xterm", "COLUMNS": "100", "PAUSE": "0.02"},
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
    os.close(leader)
    assert process.returncode == 0
    text = seen.decode()
    assert "measuring" in text
    assert "batches/s" in text
