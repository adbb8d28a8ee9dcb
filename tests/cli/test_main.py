"""The command itself: version, help, missing extras, usage errors, a closed pipe."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import cbn

COMMANDS = (
    "inspect",
    "lint",
    "check",
    "drift",
    "freeze",
    "lower",
    "fold",
    "recalibrate",
    "export",
    "info",
)
GROUPS = ("stats",)


def test_version(command):
    shown = command("--version")
    assert (shown.exit_code, shown.stdout) == (0, f"cbn {cbn.__version__}\n")


@pytest.mark.parametrize("arguments", [("--version",), ("-V",), ("--help",)])
def test_starts_by_its_installed_name_too(invoke, arguments):
    shown = invoke(*arguments)
    assert shown.exit_code == 0
    assert "cbn" in shown.stdout


# Runs the command as on a machine that lacks what the extra [onnx] installs.
WITHOUT_EXTRA = """
import importlib.util, sys
absent = {"onnx", "typer", "rich"}
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in absent else found(name, *rest)
from cbn.__main__ import main
status = main()
assert not absent & set(sys.modules), "imported what is not there"
sys.exit(status)
"""


def without_extra(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_the_extra_it_says_which_to_install(environment):
    shown = without_extra(environment, "check", "model.onnx")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == (
        'cbn: the command line needs onnx, rich, typer: pip install "cbn[onnx]"\n'
    )


def test_without_the_extra_the_version_is_known(environment):
    shown = without_extra(environment, "--version")
    assert (shown.returncode, shown.stdout) == (0, f"cbn {cbn.__version__}\n")


def test_help_lists_the_commands(invoke):
    shown = invoke("--help").stdout
    listed = shown.partition("Commands:\n")[2].partition("\n\n")[0]
    assert tuple(line.split()[0] for line in listed.splitlines()) == (*COMMANDS, *GROUPS)
    assert "..." not in listed  # each description is whole


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example_and_explains_each_option(invoke, name):
    shown = invoke(name, "--help")
    assert shown.exit_code == 0
    assert f"Example: cbn {name}" in shown.stdout
    assert "--json" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("chekc",),
        ("check",),
        ("check", "model.onnx", "--provider", "tpu"),
        ("check", "model.onnx", "--threads", "0"),
        ("export", "weights.npz"),
        ("export", "weights.npz", "-o", "out.onnx", "--rank", "6"),
        ("export", "weights.npz", "-o", "out.onnx", "--form", "fused"),
    ],
)
def test_bad_usage_is_exit_code_2_on_stderr(invoke, arguments):
    shown = invoke(*arguments)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "Usage: cbn" in shown.stderr
    assert "Error: " in shown.stderr


def test_a_closed_pipe_is_no_traceback(environment):
    with subprocess.Popen(
        [sys.executable, "-m", "cbn", "info"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_interrupt_is_one_line(environment):
    """Ctrl-C while a command runs: here, one that waits for a file that never comes."""
    script = (
        "import signal, sys, cbn.cli\n"
        "info = sys.modules['cbn.cli.info']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(): print('ready', flush=True); import time; time.sleep(60)\n"
        "info._collect = wait\n"
        "sys.argv = ['cbn', 'info']\n"
        "from cbn.__main__ import main; sys.exit(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"cbn: interrupted\n"
    assert process.returncode == 130
