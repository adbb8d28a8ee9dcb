"""``cbn drift``."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from corruptions import DIGITS, load_digits

from cbn import export

MODEL = DIGITS / "digits.onnx"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Digits in a third of the light."""
    path = tmp_path_factory.mktemp("data") / "dark.npz"
    np.savez(path, image=load_digits()[0] * np.float32(0.3))
    return path


def test_prints_a_row_for_each_layer_the_ranking_and_the_verdicts(command, data):
    shown = command("drift", MODEL, "--data", data)
    assert (shown.exit_code, shown.stderr) == (0, "")
    title, rule, *rest = shown.stdout.splitlines()
    assert title.split()[:3] == ["layer", "channels", "shift"]
    assert set(rule) == {"-"}
    assert [line.split()[0] for line in rest[:5]] == [
        f"/bn{number}/BatchNormalization" for number in range(1, 6)
    ]
    assert max(map(len, (title, rule, *rest[:5]))) <= 80
    report = export.drift(MODEL, data)
    assert rest[6].startswith(f"largest drift first: 1. {report.ranking[0]}, 2. ")
    assert tuple(line[2:] for line in rest if line.startswith("- ")) == report.verdicts


@pytest.mark.parametrize("command", ["drift", "recalibrate"])
def test_says_where_an_array_of_another_name_goes(invoke, tmp_path, command):
    np.savez(tmp_path / "x.npz", pixels=load_digits()[0])
    out = () if command == "drift" else ("-o", tmp_path / "out.onnx")
    shown = invoke(command, MODEL, "--data", tmp_path / "x.npz", *out)
    assert shown.exit_code == 0
    said = "array 'pixels' is taken for the input 'image', as the only one that fits"
    assert shown.stdout.splitlines().count(said) == 1


def test_no_drift_is_exit_code_0_too(invoke):
    shown = invoke("drift", MODEL, "--data", DIGITS / "digits.npz")
    assert shown.exit_code == 0
    assert "no drift" in shown.stdout


def test_json_is_the_report_and_nothing_else(command, data):
    shown = command("drift", MODEL, "--data", data, "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    plain = json.loads(shown.stdout)
    assert plain == export.drift(MODEL, data).to_dict()
    assert plain["ok"] is False


def test_writes_a_page(invoke, data, tmp_path):
    page = tmp_path / "drift.html"
    shown = invoke("drift", MODEL, "--data", data, "--report", page)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1] == f"{page}: written"
    content = page.read_text(encoding="utf-8")
    assert "<h1>digits.onnx: drift</h1>" in content
    assert "the inputs are darker" in content


def test_json_and_a_page_go_together(invoke, data, tmp_path):
    page = tmp_path / "drift.html"
    shown = invoke("drift", MODEL, "--data", data, "--report", page, "--json")
    assert json.loads(shown.stdout)["samples"] == 450
    assert page.exists()


def test_passes_its_options_on(invoke, data, monkeypatch, tmp_path):
    asked = {}
    measure = export.recalibration.report.drift

    def spy(*arguments, **options):
        asked.update(options, arguments=arguments)
        return measure(MODEL, data)

    monkeypatch.setattr(export.recalibration, "drift", spy)
    options = ("--node", "*bn1*", "--node", "*bn2*", "--batch-size", 7, "--limit", 20)
    invoke("drift", MODEL, "--data", data, *options, "--threads", 1, "--provider", "auto")
    assert asked["arguments"] == (MODEL, str(data))
    assert asked["nodes"] == ["*bn1*", "*bn2*"]
    assert (asked["batch_size"], asked["limit"], asked["num_threads"]) == (7, 20, 1)
    assert (asked["providers"], asked["images"]) == ("auto", None)


def test_a_part_of_the_layers_and_of_the_data(invoke, data):
    shown = invoke("drift", MODEL, "--data", data, "--node", "*bn[12]*", "--limit", 30, "--json")
    plain = json.loads(shown.stdout)
    assert [row["position"] for row in plain["rows"]] == [1, 2]
    assert plain["samples"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "missing.npz"}, "missing.npz"),
        ({"--node": "nothing*"}, "no BatchNormalization node is named or matches 'nothing*'"),
        ({"--report": "nowhere/drift.html"}, "got 'nowhere/drift.html': there is no folder /"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(invoke, data, change, message):
    options = {"--data": data, **change}
    shown = invoke("drift", MODEL, *(part for pair in options.items() for part in pair))
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert message in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_page_never_overwrites_an_input(invoke, data):
    before = data.read_bytes()
    shown = invoke("drift", MODEL, "--data", data, "--report", data)
    assert shown.exit_code == 2
    assert "would overwrite an input" in shown.stderr
    assert data.read_bytes() == before


def test_a_page_is_never_written_over_a_script_or_into_the_data(invoke, tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    np.save(folder / "a.npy", load_digits()[0])
    script = tmp_path / "script.py"
    script.write_text("def batches():\n    raise ValueError('was run')\n")
    options = tmp_path / "images.toml"
    options.write_text("")
    for arguments, page, words in (
        (("--data", f"{script}:batches"), script, "would overwrite an input"),
        (("--data", folder, "--images", options), options, "would overwrite an input"),
        (("--data", folder), folder / "page.html", "would lie in the folder of the data"),
    ):
        shown = invoke("drift", MODEL, *arguments, "--report", page)
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert words in shown.stderr
    assert script.read_text().startswith("def batches")
    assert [path.name for path in folder.iterdir()] == ["a.npy"]


def test_without_pillow_a_folder_of_images_is_one_line(invoke, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    shown = invoke("drift", MODEL, "--data", tmp_path)
    assert (shown.exit_code, shown.stdout) == (2, "")
    (line,) = shown.stderr.splitlines()
    assert line.endswith('pip install "cbn[images]"')


def test_data_must_be_given(invoke):
    shown = invoke("drift", MODEL)
    assert shown.exit_code == 2
    assert "--data" in shown.stderr
