"""The benchmarks run and say what they should. How fast anything is, no test can tell."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import cbn

ROOT = Path(__file__).parents[1]
CBN, FRESH, COPY = "cbn", "cbn new", "copy"
SHAPE = "4x16x3x5"


def bench(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``python -m benchmarks`` as a user does, briefly."""
    path = os.pathsep.join([str(Path(cbn.__file__).parents[1]), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--rounds", "1", "--threads", "1", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done


def contenders(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return result["contenders"]


def expected(mode: str, layout: str, dtype: str) -> set[str]:
    """The contenders that belong in a case of rank 4, of what is installed here."""
    names = {COPY, CBN, FRESH, "numpy"}
    if mode == "call":
        names |= {"cbn layer", "cbn layer new", "cbn function"}
    if importlib.util.find_spec("torch"):
        names |= {"torch"} if mode == "call" else {"torch", "torch out="}
        import torch

        mkldnn = dtype == "float32" and layout == "first" and mode in ("train", "eval")
        if mkldnn and torch.backends.mkldnn.is_available():
            names.add("torch mkldnn")
    onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    if onnx and mode != "backward" and dtype in ("float32", "float64"):
        names |= {"onnxruntime", "onnxruntime run"} if mode == "call" else {"onnxruntime"}
    if has_onednn() and mode != "call" and dtype == "float32":
        names |= {"oneDNN NHWC"} | ({"oneDNN NCHW"} if layout == "first" else set())
    return names


def has_onednn() -> bool:
    try:
        metadata.version("onednn-devel-cpu-gomp")
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    modes = [text for mode in ("train", "eval", "backward", "call") for text in ("--mode", mode)]
    layouts = ["--layout", "first", "--layout", "last"]
    return json.loads(bench("--json", "--shape", SHAPE, *modes, *layouts).stdout)


def test_every_mode_and_layout_is_measured(report: dict[str, Any]) -> None:
    cells = [(result["mode"], result["layout"]) for result in report["results"]]
    modes = ("train", "eval", "backward", "call")
    assert cells == [(mode, layout) for mode in modes for layout in ("first", "last")]


def test_every_contender_is_present(report: dict[str, Any]) -> None:
    for result in report["results"]:
        want = expected(result["mode"], result["layout"], "float32")
        assert set(contenders(result)) == want, (result["mode"], result["layout"])


def test_accuracy_stands_beside_speed(report: dict[str, Any]) -> None:
    for result in report["results"]:
        for name, values in contenders(result).items():
            assert values["microseconds"]["median"] > 0
            assert (values["max_ulp"] is None) == (name == COPY)
        for name in (CBN, FRESH):  # what the others compute is the same, but not as exact
            assert contenders(result)[name]["max_ulp"] <= 6
        others = [values["max_ulp"] or 0 for values in contenders(result).values()]
        assert max(others) < 1e4


def test_header_names_the_machine(report: dict[str, Any]) -> None:
    import cbn

    machine = report["machine"]
    assert machine["isa"] in cbn.build_info()["isas"]
    assert machine["threads"] == 1
    assert {"processor", "L2", "Python", "numpy", "cbn"} <= set(machine)


def test_summary_compares_with_the_copy_and_every_peer(report: dict[str, Any]) -> None:
    assert len(report["summaries"]) == len(report["results"])
    for summary, result in zip(report["summaries"], report["results"], strict=True):
        assert set(contenders(result)) - {CBN} <= set(summary["times"])
        spread = summary["times"]["cbn over the copy"]
        assert spread["geometric_mean"] == pytest.approx(contenders(result)[CBN]["over_copy"])
        assert spread["most_at"] == SHAPE


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types(dtype: str) -> None:
    modes = ("--mode", "train", "--mode", "backward", "--layout", "last")
    out = bench("--json", "--shape", SHAPE, "--dtype", dtype, *modes)
    for result in json.loads(out.stdout)["results"]:
        names = set(contenders(result)) - {"oneDNN NHWC"}  # its 16-bit kernels want some CPUs
        assert names == expected(result["mode"], "last", dtype)
        # in backward the coefficients of float64 are products of six rounded numbers
        assert contenders(result)[CBN]["max_ulp"] < 16


def test_table_is_for_people() -> None:
    out = bench("--shape", "4x16").stdout
    for text in ("processor", "isa", "max ULP", "geometric mean", "4x16", "cbn over the copy"):
        assert text in out


def test_only_leaves_out_the_others() -> None:
    out = bench("--json", "--shape", SHAPE, "--only", "numpy").stdout
    assert set(contenders(json.loads(out)["results"][0])) == {COPY, CBN, "numpy"}


def test_markdown_has_a_line_a_shape_and_a_column_a_library() -> None:
    out = bench("--markdown", "--shape", "4x16", "--shape", "8x16", "--only", "numpy").stdout
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert table[0] == "| shape | copy | cbn | numpy |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 4x16", "| 8x16"]
    for line in table[2:]:
        assert re.fullmatch(r"\| \S+ \| [\d.]+ \| [\d.]+ \([\d.]+\) \| [\d.]+ \([\d.]+\) \|", line)


def test_plot_writes_a_picture_or_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "roofline.png"
    drawn = importlib.util.find_spec("matplotlib") is not None
    arguments = ("--shape", SHAPE, "--shape", "8x16x3x5", "--mode", "eval", "--plot", str(path))
    done = bench(*arguments, fails=not drawn)
    if drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert "pip install matplotlib" in done.stderr


def test_targets_state_bar_and_figure() -> None:
    out = bench("--targets", "train", "--shape", SHAPE, "--json").stdout
    rows = json.loads(out)["targets"]
    assert {row["group"] for row in rows} == {"train"}
    measured = [row for row in rows if row["met"] is not None]
    assert all(row["bar"] and float(row["figure"]) > 0 for row in measured)
    # Arrays of 16 MB are asked for in the lines about the copy: none here.
    copies = [row for row in rows if "over the copy" in row["measure"]]
    assert [row["met"] for row in copies] == [None] * 4


def test_targets_of_calls() -> None:
    rows = json.loads(bench("--targets", "call", "--json").stdout)["targets"]
    assert [row["bar"] for row in rows if row["bar"]] == ["<= 0.5", "<= 1.5", "<= 1.5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "3"], "expected 2 to 5 positive sizes"),
        (["--shape", "1x64"], "more than one value a channel"),
        (["--rounds", "0"], "expected 1 or more"),
        (["--only", "abacus"], "abacus"),
        (
            ["--targets", "package", "--shape", SHAPE],
            "--shape: --targets package has shapes of its",
        ),
        (["--targets", "abacus"], "expected one of train, eval"),
        (["--targets", "package", "--wheel", "no.whl"], "there is no file no.whl"),
        (["--wheel", "no.whl"], "--wheel goes with --targets alone"),
        (["--json", "--markdown"], "expected one of them"),
        (["--plot", "no/such/folder.png"], "there is no folder no/such"),
        (["--plot", "x.txt"], "--plot: expected a name in .png, .svg, .pdf, got x.txt"),
    ],
)
def test_bad_options_say_what_is_accepted(arguments: list[str], message: str) -> None:
    done = bench(*arguments, fails=True)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
