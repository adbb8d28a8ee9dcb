"""C files beside this one, compiled when they are first needed."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def compile_c(name: str, *options: str) -> ctypes.CDLL | None:
    """Compile a C file of this folder with OpenMP; None where the compiler cannot."""
    source = Path(__file__).with_name(name)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, source.stem + ".so")
        command = ["cc", "-O2", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run([*command, *options], check=True, capture_output=True)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError):
            return None
