"""Build the Cython kernels; everything else is declared in pyproject.toml."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# One place for compiler directives: every kernel is a raw, wraparound-free loop.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "binding": True,
    "embedsignature": True,
    "freethreading_compatible": True,
}

# No contraction to FMA: results must be the same bits for every instruction set.
CFLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]


class BuildExt(build_ext):
    """Add OpenMP where the compiler has it; build serial kernels otherwise."""

    def build_extensions(self) -> None:
        flags = self._openmp_flags()
        for ext in self.extensions:
            ext.extra_compile_args += CFLAGS + flags
            ext.extra_link_args += flags
        super().build_extensions()

    def _openmp_flags(self) -> list[str]:
        if os.environ.get("CBN_NO_OPENMP"):
            return []
        source = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.c")
            path.write_text(source)
            command = [
                *self.compiler.compiler,
                "-fopenmp",
                str(path),
                "-o",
                str(path.with_suffix("")),
            ]
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                print("cbn: this compiler has no OpenMP: building serial kernels", file=sys.stderr)
                return []
        return ["-fopenmp"]


setup(
    ext_modules=cythonize(
        Extension("cbn._kernels", ["cbn/_kernels.pyx"], depends=["cbn/_lanes.h"]),
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
    ),
    cmdclass={"build_ext": BuildExt},
)
