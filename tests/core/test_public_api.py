"""What `import cbn` gives, and what it needs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cbn


def test_public_names():
    assert sorted(cbn.__all__) == [
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "BatchStats",
        "ScaleShift",
        "__version__",
        "batch_norm",
        "batch_norm_backward",
        "batch_stats",
        "build_info",
    ]
    assert all(hasattr(cbn, name) for name in cbn.__all__)


def test_nothing_else_is_public():
    public = {name for name in vars(cbn) if not name.startswith("_")}
    submodules = {name for name in public if inspect.ismodule(getattr(cbn, name))}
    assert public - submodules <= set(cbn.__all__)


def members():
    for name in cbn.__all__:
        value = getattr(cbn, name)
        if callable(value):
            yield pytest.param(value, id=name)
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            if not attribute.startswith("_") and (callable(member) or isinstance(member, property)):
                yield pytest.param(member, id=f"{name}.{attribute}")


@pytest.mark.parametrize("member", list(members()))
def test_every_public_name_has_a_docstring(member):
    assert inspect.getdoc(member)


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (
            cbn.batch_norm,
            "(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, "
            "eps=1e-05, *, axis=1, out=None, num_threads=None)",
        ),
        (
            cbn.BatchNorm2d,
            "(num_features, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, *, "
            "dtype='float32', channels_last=False, num_threads=None)",
        ),
        (cbn.batch_stats, "(x, *, axis=1, num_threads=None)"),
    ],
)
def test_signatures(function, signature):
    shown = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in shown.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == signature


IMPORTED = """
import sys
before = set(sys.modules)
import cbn
new = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
slow = "dataclasses" in set(sys.modules) - before  # a third of what importing cbn took
print(" ".join(sorted(new)), slow, "cbn.export" in sys.modules)
"""


def test_importing_it_needs_numpy_alone():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        env=os.environ | {"PYTHONPATH": str(Path(cbn.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *modules, slow, exported = done.stdout.split()
    # what a compiled module registers in sys.modules is not an import
    others = {name for name in modules if not name.startswith(("cython_runtime", "_cython_"))}
    assert others == {"cbn", "numpy"}
    assert (slow, exported) == ("False", "False")


def test_bfloat16_is_known_by_its_name():
    code = "import cbn; print(cbn.BatchNorm1d(3, dtype='bfloat16').weight.dtype)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(cbn.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "bfloat16\n"


def test_build_info():
    info = cbn.build_info()
    assert list(info) == ["isa", "isas", "vector_bytes", "threaded", "threads"]
    assert info["vector_bytes"] in (16, 32, 64)
    assert info["threads"] >= 1


def test_it_imports_without_docstrings():
    code = "import cbn; print(cbn.BatchNorm1d(3))"
    subprocess.run(
        [sys.executable, "-OO", "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(cbn.__file__).parents[1])},
        check=True,
        capture_output=True,
    )
