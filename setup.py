"""Build the Cython kernels; everything else is declared in pyproject.toml."""

import os
import platform
import sys
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
CFLAGS = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
CFLAGS += ["-g0", "-fno-asynchronous-unwind-tables"]  # a small wheel
CFLAGS.append(os.environ.get("CBN_OPTIMIZE", "-O3"))


# Threads of the operating system (cbn/_pool.h), or kernels that run on one alone.
THREADS = ["-DCBN_SERIAL"] if os.environ.get("CBN_NO_THREADS") else ["-pthread"]


class BuildExt(build_ext):
    """Add the flags that every module shares."""

    def build_extensions(self) -> None:
        for ext in self.extensions:
            ext.extra_compile_args += CFLAGS + THREADS
            ext.extra_link_args += THREADS
            if sys.platform == "linux":
                ext.extra_link_args.append("-Wl,-s")  # no symbol table: a third of the size
        super().build_extensions()


DEPENDS = ["cbn/_lanes.h", "cbn/_pool.h", *map(str, sorted(Path("cbn").glob("_*.pxi")))]

# One source, one build per instruction set: name of the build -> what the compiler may use.
BUILDS = {"": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    BUILDS["_v3"] = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
    BUILDS["_v4"] = [*BUILDS["_v3"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    BUILDS["_v4"] += ["-mprefer-vector-width=512"]


def extensions() -> list[Extension]:
    """The kernels once for each instruction set."""
    plain = [Extension(f"cbn.{name}", [f"cbn/{name}.pyx"]) for name in ("_cpu", "capi")]
    built = cythonize(plain, build_dir="build/cython", compiler_directives=DIRECTIVES)
    for tag, flags in BUILDS.items():
        kernels = Extension(
            f"cbn._kernels{tag}",
            ["cbn/_kernels.pyx"],
            depends=DEPENDS,
            extra_compile_args=list(flags),
        )
        # A folder for each: Cython names its C file after the source, not after the module.
        built += cythonize(kernels, build_dir=f"build/cython{tag}", compiler_directives=DIRECTIVES)
    return built


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
)
