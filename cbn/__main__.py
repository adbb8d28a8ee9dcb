"""The command ``cbn``: what can be said with NumPy alone, then over to :mod:`cbn.cli`."""

from __future__ import annotations

import importlib.util
import sys

from cbn._version import __version__

__all__ = ["main"]

# What the command line imports beyond NumPy; the extra [onnx] installs all of it.
REQUIRED_MODULES = ("onnx", "onnx_ir", "onnxruntime", "rich", "safetensors", "typer")


def main() -> int:
    """Run the command line on ``sys.argv`` and return its exit code.

    Returns
    -------
    int
        0: what was asked holds; 1: it does not; 2: bad usage or input; 130: interrupted.
    """
    if sys.argv[1:] in (["--version"], ["-V"]):
        print(f"cbn {__version__}")
        return 0
    missing = [name for name in REQUIRED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f'cbn: the command line needs {", ".join(missing)}: pip install "cbn[onnx]"',
            file=sys.stderr,
        )
        return 2
    try:
        from cbn.cli import app

        app(prog_name="cbn")
    except KeyboardInterrupt:  # while starting: once a command runs, the command group answers
        print("cbn: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
