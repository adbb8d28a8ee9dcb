"""Tables: whole at every width, in colour on a terminal alone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from cbn.cli.tables import print_table

LONG = "/features/denseblock3/denselayer17/norm1/BatchNormalization"
COLUMNS = ("node", "input", "max |error|", "ulp", "result")
ROWS = [(LONG, "1x64x112x112", "1.2e-07", "0.5", "pass"), ("bn[red]", "1x8", "3", "9e+05", "FAIL")]

SCRIPT = f"""
from cbn.cli.output import print_verdict
from cbn.cli.tables import print_table
print_table({COLUMNS!r}, {ROWS!r}, [True, False])
print_verdict(False, "1 of 2 nodes")
"""


TEXTS = ("node", "channels", "producer", "consumers", "folds into", "remarks")
OF_TEXT = [
    (LONG, "64", "Conv 'conv'", "Relu 'relu1', Add 'add'", "no: two nodes read it", "-"),
    ("bn", "8", "MatMul 'product'", "Relu 'relu2'", "Conv 'conv2'", "training-mode"),
]

SCRIPT_OF_TEXT = f"""
from cbn.cli.output import print_text
from cbn.cli.tables import print_table
print_table({TEXTS!r}, {OF_TEXT!r}, [True, False])
print_text("so many words " * 9 + "and-one-that-is-long-" * 5, mark="- ")
"""


def on_terminal(
    environment: dict[str, str], width: int, *, script: str = SCRIPT, **variables: str
) -> str:
    """Run a script on a terminal of the given width and return what appears there."""
    leader, follower = pty.openpty()
    settings = {"COLUMNS": str(width), "TERM": "xterm", **variables}
    plain = {name: value for name, value in environment.items() if name != "NO_COLOR"}
    with os.fdopen(leader, "rb", buffering=0) as screen:
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=follower, env=plain | settings
        ) as process:
            os.close(follower)
            shown = b""
            try:
                while part := screen.read(65536):
                    shown += part
            except OSError:  # Linux: the other end is closed
                pass
        assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


def test_a_pipe_gets_one_whole_line_a_row(capsys):
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "node                                                         input         "
        "max |error|    ulp  result",
        "-" * 101,
        f"{LONG}  1x64x112x112      1.2e-07    0.5  pass",
        "bn[red]                                                      1x8         "
        "            3  9e+05  FAIL",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_terminal_of_any_width_shows_everything(environment, width):
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(environment, width))
    assert max(map(len, shown.splitlines())) <= width
    flat = "".join(shown.split())
    for cell in (*ROWS[0][1:], *ROWS[1]):
        assert cell in flat
    assert "…" not in shown


def test_a_wide_terminal_shows_a_row_a_line(environment):
    assert len(on_terminal(environment, 120).splitlines()) == 5


def test_a_narrower_terminal_folds_the_name(environment):
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(environment, 80)).splitlines()
    width = shown[1].index("input")
    assert LONG in "".join(line[:width].strip() for line in shown[2:])


def test_a_narrow_terminal_gives_a_name_its_own_line(environment):
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(environment, 60)).splitlines()
    assert shown.index(LONG) == shown.index("bn[red]") - 2


def test_texts_that_do_not_fit_beside_the_rest_stand_below_it(environment):
    shown = on_terminal(environment, 50, script=SCRIPT_OF_TEXT)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()]
    at = lines.index("bn")
    assert max(map(len, lines[: at + 4])) <= 50
    assert lines[at + 1].split() == ["8", "MatMul", "'product'", "Relu", "'relu2'"]
    assert lines[at + 2 : at + 4] == ["  folds into: Conv 'conv2'", "  remarks: training-mode"]
    assert "  folds into: no: two nodes read it" in lines
    assert "  remarks: -" not in lines  # nothing is said of nothing


def test_a_terminal_wraps_text_between_words(environment):
    shown = on_terminal(environment, 50, script=SCRIPT_OF_TEXT).splitlines()[-4:]
    words = "so many words " * 9 + "and-one-that-is-long-" * 5
    assert shown[-1] == "  " + "and-one-that-is-long-" * 5  # a path is never broken
    assert all(len(line) <= 50 for line in shown[:-1])
    assert shown[0].startswith("- so many")
    assert " ".join(line[2:] for line in shown) == words


def test_a_terminal_shows_failure_in_red(environment):
    assert "\x1b[31m" in on_terminal(environment, 120)


def test_no_color_is_honoured(environment):
    assert not re.search(r"\x1b\[[\d;]*3\d", on_terminal(environment, 120, NO_COLOR="1"))


def test_an_empty_table_is_its_header(capsys):
    print_table(("node", "mode"), [])
    title, rule = capsys.readouterr().out.splitlines()
    assert title == "node  mode"
    assert set(rule) == {"-"}
