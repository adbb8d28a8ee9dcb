"""How a command ends: one line on stderr for bad input, and the exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cbn.cli.errors import CommandGroup, about
from cbn.export import DataError, ModelError, ProviderError


def run(error: BaseException | None):
    """Run a command that raises the error, in a group of commands like that of ``cbn``."""
    app = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False)

    @app.callback()
    def main() -> None:
        pass

    @app.command()
    def work() -> None:
        if error is not None:
            raise error

    return CliRunner().invoke(app, ["work"])


def test_nothing_raised_is_success():
    assert run(None).exit_code == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("eps: expected more than 0, got -1"), "eps: expected more than 0, got -1"),
        (TypeError("expected a path"), "expected a path"),
        (ModelError("a.onnx is empty"), "a.onnx is empty"),
        (ProviderError("no CUDA here"), "no CUDA here"),
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError("bn\x1b[2J"), "bn\\x1b[2J"),
        (ValueError(), "ValueError"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(error, line):
    result = run(error)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"cbn: error: {line}\n"


def test_an_interrupt_is_one_line_and_exit_code_130():
    result = run(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "cbn: interrupted\n")


@pytest.mark.parametrize("error", [RuntimeError("a defect"), AssertionError("a defect")])
def test_a_defect_keeps_its_traceback(error):
    assert run(error).exception is error


def test_the_traceback_of_bad_input_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("CBN_TRACEBACK", "1")
    error = ValueError("eps")
    assert run(error).exception is error


def test_an_error_names_the_file_it_is_about():
    with pytest.raises(ValueError, match=r"^model\.onnx: no node$"), about(Path("model.onnx")):
        raise ValueError("no node")


def test_an_error_of_the_data_is_about_the_data():
    with (
        pytest.raises(ValueError, match=r"^x\.npz: no sample$"),
        about(Path("model.onnx"), Path("i.toml"), data=Path("x.npz")),
    ):
        raise DataError("no sample")
    with (
        pytest.raises(ValueError, match=r"^model\.onnx: no node$"),
        about(Path("model.onnx"), data=Path("x.npz")),
    ):
        raise ModelError("no node")


def test_a_file_is_named_once():
    with (
        pytest.raises(ValueError, match=r"^x\.npz: no such file$"),
        about(Path("model.onnx"), Path("x.npz")),
    ):
        raise ValueError("x.npz: no such file")
