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
CFLAGS += [
    "-g0",
    "-fno-asynchronous-unwind-tables",
    "-DCYTHON_CLINE_IN_TRACEBACK=0",
]  # a small wheel


# Threads of the operating system (cbn/_pool.h), or kernels that run on one alone.
THREADS = ["-DCBN_SERIAL"] if os.environ.get("CBN_NO_THREADS") else ["-pthread"]


class BuildExt(build_ext):
    """Add the flags that every module shares."""

    def build_extensions(self) -> None:
        for ext in self.extensions:
            ext.extra_compile_args += CFLAGS + THREADS
            if "CBN_OPTIMIZE" in os.environ:  # the last one counts
                ext.extra_compile_args.append(os.environ["CBN_OPTIMIZE"])
            ext.extra_link_args += THREADS
            if sys.platform == "linux":
                ext.extra_link_args.append("-Wl,-s")  # no symbol table: a third of the size
        super().build_extensions()


DEPENDS = [str(path) for end in ("h", "pxi") for path in sorted(Path("cbn").glob(f"_*.{end}"))]

# One source, one build per instruction set: name of the build -> what the compiler may use. -O3 is
# a twentieth faster on short runs than -O2, and a fifth larger.
BUILDS = {"": ["-O3"]}
if platform.machine().lower() in ("x86_64", "amd64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
    AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    # No more inlining of what is not marked inline than at -O2: smaller, and no slower.
    FAST = ["-O3", "--param=max-inline-insns-auto=15", "--param=early-inlining-insns=6"]
    FAST += ["--param=inline-min-speedup=30"]
    # Less still for old processors: their vectors are the shortest, and their build the largest.
    # The loops that count are vectors as they are written.
    SMALL = ["-O2", "-fno-tree-vectorize", "--param=max-inline-insns-single=40"]
    SMALL += ["--param=inline-unit-growth=20", "--param=early-inlining-insns=4"]
    BUILDS = {"": SMALL, "_v3": [*FAST, *AVX2], "_v4": [*FAST, *AVX2, *AVX512]}


# What Cython adds to each module, memoryviews above all, once for all of them. It is in sys.modules
# under its last name too, which is to be nobody else's.
SHARED = "cbn._cython_cbn"
OPTIONS = {"compiler_directives": DIRECTIVES, "shared_utility_qualified_name": SHARED}


def extensions() -> list[Extension]:
    """The kernels once for each instruction set."""
    plain = [
        Extension(f"cbn.{name}", [f"cbn/{name}.pyx"], extra_compile_args=["-O2"])
        for name in ("_cpu", "capi")
    ]
    plain.append(Extension(SHARED, [SHARED.replace(".", "/") + ".c"], extra_compile_args=["-O2"]))
    built = cythonize(plain, build_dir="build/cython", **OPTIONS)
    for tag, flags in BUILDS.items():
        kernels = Extension(
            f"cbn._kernels{tag}",
            ["cbn/_kernels.pyx"],
            depends=DEPENDS,
            extra_compile_args=list(flags),
        )
        # A folder for each: Cython names its C file after the source, not after the module.
        built += cythonize(kernels, build_dir=f"build/cython{tag}", **OPTIONS)
    return built


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
)
