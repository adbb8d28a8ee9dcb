"""What a wheel and a source distribution hold, and that the second builds the first."""

from __future__ import annotations

import email.message
import email.parser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import cbn

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".*_cache", ".hypothesis", "__pycache__", "*.so", "*.egg-info", "build", "dist", ".venv"
)


def build(kind: str, tree: Path, to: Path) -> Path:
    """Build an "sdist" or "wheel" of `tree` with the tools of this environment."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(to)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=170,
        env={**os.environ, "CBN_OPTIMIZE": "-O0"},  # what is built is looked at, and not run
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = to.iterdir()
    return made


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("checkout") / "cbn"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_OUT)
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def sources(sdist) -> set[str]:
    """Paths in the source distribution, below its top folder."""
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory) -> zipfile.ZipFile:
    """A wheel that is built from the source distribution, as pip does where none fits."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return zipfile.ZipFile(build("wheel", tree, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="session")
def metadata(wheel) -> email.message.Message:
    return email.parser.Parser().parsestr(wheel.read(dist_info(wheel, "METADATA")).decode())


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    return f"cbn-{cbn.__version__}.dist-info/{name}"


def modules(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts and not path.is_relative_to(ROOT / "cbn" / "export")
    }


def test_the_wheel_holds_every_module_of_export_below_cbn_alone(wheel):
    names = wheel.namelist()
    assert {f"cbn/export/{name}" for name in modules("export")} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"cbn", f"cbn-{cbn.__version__}.dist-info"}


def test_the_source_distribution_holds_every_module_of_export_at_the_top_alone(sources):
    assert {f"export/{name}" for name in modules("export")} <= sources
    assert not [name for name in sources if name.startswith("cbn/export")]


def test_the_only_top_level_name_is_cbn(wheel):
    assert wheel.read(dist_info(wheel, "top_level.txt")).decode().split() == ["cbn"]


def test_the_wheel_holds_every_module_of_cbn_and_its_command_line(wheel):
    for folder in ("cbn", "cbn/cli"):
        assert {f"{folder}/{name}" for name in modules(folder)} <= set(wheel.namelist())


def test_the_wheel_holds_types_and_the_compiled_kernels(wheel):
    names = wheel.namelist()
    assert "cbn/py.typed" in names
    assert {"cbn/_kernels.pyi", "cbn/capi.pxd", "cbn/_table.pxd"} <= set(names)
    assert any(
        name.startswith("cbn/_kernels.") and name.endswith((".so", ".pyd")) for name in names
    )


def test_the_wheel_holds_no_sources_of_kernels_and_no_tests(wheel):
    suffixes = {Path(name).suffix for name in wheel.namelist()}
    assert not suffixes & {".pyx", ".c", ".h"}
    assert not any("tests/" in name for name in wheel.namelist())


def test_the_source_distribution_holds_what_builds_and_explains_it(sources):
    assert {
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "cbn/_kernels.pyx",
        "cbn/_kernels.pyi",
        "cbn/_lanes.h",
        "cbn/_lanes16.h",
        "cbn/_activations.h",
        "cbn/_sums.pxi",
        "cbn/capi.pyx",
        "cbn/_table.pxd",
        "cbn/py.typed",
    } <= sources
    assert not [name for name in sources if name.startswith("build/") or name.endswith(".so")]


def test_the_source_distribution_holds_its_tests(sources):
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert tests <= sources


def test_the_licence_is_told_by_expression_and_file(wheel, metadata):
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert wheel.read(dist_info(wheel, "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
    assert not [c for c in metadata.get_all("Classifier", []) if c.startswith("License")]


def test_numpy_is_the_only_thing_needed(metadata):
    needed = [entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry]
    assert [entry.partition(">")[0] for entry in needed] == ["numpy"]


def test_the_extras(metadata):
    assert set(metadata.get_all("Provides-Extra")) >= {"onnx", "gpu", "test", "dev"}


def test_the_version_is_that_of_the_module(metadata):
    assert metadata["Version"] == cbn.__version__


def test_the_command_is_installed(wheel):
    assert "cbn = cbn.__main__:main" in wheel.read(dist_info(wheel, "entry_points.txt")).decode()
