"""``cbn recalibrate``: what it prints, what it writes, and what it refuses to write."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corruptions import DIGITS, contrast, load_digits
from PIL import Image

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


def test_what_is_wrong_with_the_inputs_is_said_and_refuses_nothing(invoke, tmp_path):
    path, out = tmp_path / "bytes.npy", tmp_path / "out.onnx"
    np.save(path, load_digits()[0] * np.float32(255))
    shown = invoke("recalibrate", MODEL, "--data", path, "-o", out)
    assert shown.exit_code == 0
    (said,) = (line for line in shown.stdout.splitlines() if line.startswith("the inputs are "))
    assert said.startswith("the inputs are 255 times those of training: layer 1 shifts by ")
    assert said.endswith("a step of the preprocessing may be missing, or done twice")
    assert out.exists()
    np.save(path, load_digits()[0])
    assert "the inputs" not in invoke("recalibrate", MODEL, "--data", path, "-o", out).stdout


@pytest.mark.parametrize(("samples", "word"), [(2, "doubtful"), (3, "doubtful"), (60, "passed")])
def test_too_few_samples_are_no_pass(invoke, tmp_path, samples, word):
    path, out = tmp_path / "few.npy", tmp_path / "out.onnx"
    np.save(path, load_digits()[0][:samples])
    arguments = ("recalibrate", MODEL, "--data", path, "-o", out, "--prior", "0")
    shown = invoke(*arguments)
    assert shown.exit_code == 0
    verdict = shown.stdout.splitlines()[-2]
    assert verdict.startswith(f"{word}: 5 of 5 nodes re-estimated on ")
    few = word == "doubtful"
    assert ("; too few samples to trust; " in verdict) == few
    assert verdict.endswith(" on 1 held-out sample, too few to tell") == few
    assert ("warning: too few samples (" in shown.stdout) == few
    assert json.loads(invoke(*arguments, "--json").stdout)["doubtful"] == few


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
    assert "went on from here" not in shown.stdout
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
    assert line.startswith("cbn: error: executor: 'rubbish' is no address")
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


def test_an_error_begins_with_the_file_that_is_wrong(invoke, data, tmp_path):
    few, wild, fraction = (tmp_path / f"{name}.npy" for name in ("few", "wild", "fraction"))
    np.save(few, np.arange(7))
    np.save(wild, np.full(450, 10))
    np.save(fraction, np.ones(450))
    photos, toml, key = tmp_path / "photos", tmp_path / "i.toml", tmp_path / "key.toml"
    photos.mkdir()
    for index in range(2):
        Image.new("L", (8, 8)).save(photos / f"{index}.png")
    toml.write_text("std = [1, 1]")
    key.write_text("sise = 8")
    wide, one, nan = (tmp_path / f"{name}.npy" for name in ("wide", "one", "nan"))
    np.save(wide, np.ones((9, 1, 8, 9), np.float32))
    np.save(one, np.ones((1, 1, 8, 8), np.float32))
    np.save(nan, np.full((9, 1, 8, 8), np.nan, np.float32))
    for wrong, arguments, words in (
        (few, ("--labels", few), "got 7 labels for 450 samples"),
        (wild, ("--labels", wild), "expected labels from 0 to 9"),
        (fraction, ("--labels", fraction), "expected whole numbers"),
        (toml, ("--data", photos, "--images", toml), "std has 2 numbers for 1 channels"),
        (toml, ("--images", toml), f"options for images, and {data} holds none"),
        (key, ("--data", photos, "--images", key), "unknown key 'sise'"),
        (photos, ("--data", photos, "--labels", "folders"), "labels 'folders': image 0.png lies"),
        (wide, ("--data", wide), "input 'image': expected float32"),
        (one, ("--data", one), "to hold some out takes 2 samples or more, got 1"),
        (nan, ("--data", nan), "the batch of samples 0 to 6: NaN"),
        (MODEL, ("--scores", "none"), "there is no output 'none'"),
    ):
        shown = invoke("recalibrate", MODEL, "--data", data, "-o", tmp_path / "o.onnx", *arguments)
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert shown.stderr.startswith(f"cbn: error: {wrong}: {words}")


@pytest.mark.parametrize(
    ("option", "name"),
    [("--labels", "n.md"), ("--labels", "n.csv"), ("--labels", "n.npz:a"), ("--images", "n.toml")],
)
def test_a_file_that_is_not_there_is_said_to_be_missing(invoke, data, tmp_path, option, name):
    missing = tmp_path / name
    out = tmp_path / "o.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, option, missing)
    path = str(missing).removesuffix(":a")
    assert (shown.exit_code, shown.stderr) == (2, f"cbn: error: {path}: no such file\n")


def test_a_word_misspelt_for_folders_is_told_what_is_accepted(invoke, data, tmp_path):
    out = tmp_path / "o.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, "--labels", "folder")
    assert shown.stderr.startswith("cbn: error: folder: no such file; expected .npy, ")
    assert "or 'folders' for images" in shown.stderr


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


@pytest.mark.parametrize(
    ("option", "arguments"),
    [("--prior auto", ()), ("--labels", ("--prior", "0", "--labels", "folders"))],
)
def test_what_needs_held_out_data_says_so(invoke, data, tmp_path, option, arguments):
    out = tmp_path / "out.onnx"
    shown = invoke("recalibrate", MODEL, "--data", data, "-o", out, "--held-out", "0", *arguments)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr == (
        f"cbn: error: {option} needs data that is held out, and --held-out is 0\n"
    )


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
    said = f"cbn: interrupted; {kept}: kept, the same command goes on from there\n"
    assert (process.returncode, errors) == (130, said)
    assert kept.exists()
    assert not out.exists()
    monkeypatch.setenv("PAUSE", "0")
    shown = invoke(*arguments)
    assert shown.exit_code == 0
    assert "on 1800 samples" in shown.stdout
    pattern = rf"^{re.escape(str(kept))}: went on from here, with \d+ batch(es)? measured before$"
    assert re.search(pattern, shown.stdout, re.MULTILINE)
    assert not kept.exists()


def test_help_names_the_folder_beside_a_checkpoint(invoke):
    shown = " ".join(re.sub(r"[^\w.\-]+", " ", invoke("recalibrate", "--help").stdout).split())
    assert "with --method sequential also in a folder FILE.tensors beside it" in shown
    assert "Nodes in training mode are in eval mode in the new model" in shown


def test_ctrl_c_before_there_is_a_checkpoint_promises_none(invoke, data, tmp_path, monkeypatch):
    def interrupted(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "recalibrate", interrupted)
    arguments = ("recalibrate", MODEL, "--data", data, "-o", tmp_path / "out.onnx")
    for more in ((), ("--checkpoint", tmp_path / "run.checkpoint")):
        shown = invoke(*arguments, *more)
        assert (shown.exit_code, shown.stderr) == (130, "cbn: interrupted\n")


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
