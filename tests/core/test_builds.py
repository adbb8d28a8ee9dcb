"""The builds of the kernels: one answer from all, and a processor gets none that it cannot run."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import builds
import ml_dtypes
import numpy as np
import oracles
import pytest

import cbn
from cbn._arrays import compiled_call

SHAPES = {
    "one value a channel": (1, 17),
    "one value": (1, 1, 1),
    "few rows": (3, 2),
    "rows": (37, 17),
    "many rows": (1500, 3),
    "more rows than a block": (5000, 5),
    "wide rows": (9, 300),
    "rows of 320": (19, 320),
    "one channel": (3, 1, 50),
    "pixels": (5, 3, 1, 1),
    "runs of 2": (70, 17, 2),
    "runs of 15": (33, 2, 15),
    "runs of 16": (9, 5, 16),
    "runs of 17": (9, 5, 17),
    "runs of 49": (6, 70, 49),
    "7x7": (40, 33, 7, 7),
    "many of 7x7": (2, 340, 7, 7),
    "a run of two blocks": (2, 3, 4099),
    "one channel of many blocks": (2, 1, 40_001),
    "runs of 7 pieces": (4, 70, 10, 10, 7),
}
each_dtype = pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, np.float32, np.float64],
    ids=lambda dtype: np.dtype(dtype).name,
)


def unaligned(x: np.ndarray) -> np.ndarray:
    """x again, one element after the start of its memory."""
    memory = np.empty(x.size + 1, x.dtype)
    memory[1:] = x.reshape(-1)
    return memory[1:].reshape(x.shape)


def sliced(x: np.ndarray) -> np.ndarray:
    """x again, as a part of the batch and the channels of a larger array."""
    room = np.zeros((x.shape[0] + 2, x.shape[1] + 3, *x.shape[2:]), x.dtype)
    room[1:-1, 1:-2] = x
    return room[1:-1, 1:-2]


LAYOUTS = {
    "first": lambda x: x,
    "last": oracles.channels_last,
    "unaligned": unaligned,
    "sliced": sliced,
}


def everything(
    x: np.ndarray, dy: np.ndarray, out: np.ndarray, num_threads: int
) -> dict[str, np.ndarray]:
    """What each kernel makes of x, some of it written to memory like x's."""
    channels = x.shape[1]
    weight, bias, mean = (oracles.array((channels,), seed=seed) for seed in range(3))
    rstd = np.abs(mean) + np.float32(0.5)
    options = {"num_threads": num_threads}
    stats = cbn.batch_stats(x, **options)
    results = {"mean": stats.mean, "m2": stats.m2, "mean_low": stats.mean_low}
    if x.size > channels:
        results["train"] = cbn.batch_norm(x, None, None, weight, bias, True, **options)
    results["eval"] = cbn.batch_norm(x, mean, rstd, weight, bias, out=out, **options).copy()
    for activation in ("leaky_relu", "silu"):
        f = cbn.ScaleShift(
            mean, weight, bias, activation=activation, dtype=x.dtype, num_threads=num_threads
        )
        # The checked way, by strides that the compiled one does not take.
        results[activation] = f(np.stack([x, x], -1)[..., 0], residual=dy)
    for training in (True, False):
        names = [f"{name}, training={training}" for name in ("dx", "dweight", "dbias")]
        gradient = cbn.batch_norm_backward(dy, x, weight, mean, rstd, training=training, **options)
        results.update(zip(names, gradient, strict=True))
    return results


def assert_one_answer(shape: tuple[int, ...], layout: str, dtype: np.dtype) -> None:
    x, dy, out = (
        LAYOUTS[layout](oracles.array(shape, np.float32, seed).astype(dtype)) for seed in (3, 4, 5)
    )
    expected: dict[str, bytes] = {}
    for isa in builds.USABLE:
        with builds.running(isa):
            for num_threads in (1, 2, 3, 4):
                results = everything(x, dy, out, num_threads)
                assert all(np.isfinite(array).all() for array in results.values())
                bits = {name: array.tobytes() for name, array in results.items()}
                expected = expected or bits
                for name in bits:
                    assert bits[name] == expected[name], (name, isa, num_threads)


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_build_and_number_of_threads_gives_the_same_bits(shape, layout, dtype):
    assert_one_answer(SHAPES[shape], layout, dtype)


@pytest.mark.parametrize("layout", ["unaligned", "last"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_so_do_arrays_that_are_written_past_the_cache(dtype, layout):
    x = np.empty((4, 11, 321, 321), dtype)
    assert x.nbytes > 8 << 20
    assert_one_answer(x.shape, layout, x.dtype)


@builds.each_build
def test_functions_and_layers_are_served_by_the_build_that_runs(isa, monkeypatch):
    x, ones = oracles.array((4, 3, 5)), np.ones(3)
    with builds.running(isa) as kernels:
        assert type(compiled_call(x, 1, None)) is kernels.BatchNormCall
        assert type(cbn.BatchNorm1d(3)._compiled_call(x.dtype)) is kernels.BatchNormCall
        asked = []
        monkeypatch.setattr(kernels, "scale", Asked(asked, kernels.scale))
        cbn.batch_norm(x[:, :, ::2], ones, ones)  # which is not contiguous
        assert asked == ["float"]


class Asked:
    """A fused function that remembers what it was asked for."""

    def __init__(self, asked: list[str], functions: Any) -> None:
        self._asked, self._functions = asked, functions

    def __getitem__(self, name: str) -> Any:
        self._asked.append(name)
        return self._functions[name]


@builds.each_build
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_the_compiled_call_gives_the_bits_of_the_checked_one(last, dtype, isa):
    channels = 19
    values = np.stack([oracles.array((channels,), seed=seed) for seed in range(3)])
    values = values.astype(np.float64)
    with builds.running(isa) as kernels:
        for shape in [(1, 19), (7, 19), (5, 19, 7), (2, 19, 16), (3, 19, 7, 7), (3, 19, 41, 40)]:
            x, residual = (oracles.array(shape, np.float32, seed).astype(dtype) for seed in (3, 4))
            if last:
                x, residual = (np.moveaxis(array, 1, -1).copy() for array in (x, residual))
            for number, activation in enumerate(cbn.scale_shift.ACTIVATIONS):
                compiled = kernels.AffineMap()
                compiled._prepare(
                    values, np.dtype(dtype), last, number, 0.01, (2, 5), (), (1 << 15, 3, True)
                )
                checked = cbn.ScaleShift(
                    *values, activation=activation, dtype=dtype, axis=-1 if last else 1
                )._checked
                np.testing.assert_array_equal(compiled(x), checked(x, None, None))
                np.testing.assert_array_equal(
                    compiled(x, None, residual), checked(x, None, residual)
                )


# ---- which one is taken --------------------------------------------------------------------------


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh process that runs `code` with the same cbn as this one."""
    inherited = {name: value for name, value in os.environ.items() if name != "CBN_ISA"}
    path = {"PYTHONPATH": str(Path(cbn.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | path | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SHOWN = "import cbn; print(cbn.build_info()['isa'], cbn.build_info()['vector_bytes'])"
# As on a processor of the first level of x86-64: nothing but what the answer of _cpu decides.
OLD_CPU = """
import sys, types
sys.modules["cbn._cpu"] = types.SimpleNamespace(level=lambda: 1)
import cbn
print(cbn.build_info()["isa"], cbn.build_info()["isas"])
print([name for name in ("cbn._kernels_v3", "cbn._kernels_v4") if name in sys.modules])
"""


def test_the_best_build_is_taken():
    assert python(SHOWN).stdout.split()[0] == builds.USABLE[-1]
    assert python(SHOWN, CBN_ISA="").stdout.split()[0] == builds.USABLE[-1]


@builds.each_build
def test_cbn_isa_names_the_build(isa):
    width = {"v3": "32", "v4": "64"}.get(isa, "16")
    assert python(SHOWN, CBN_ISA=isa).stdout.split() == [isa, width]


def test_an_unknown_name_is_refused():
    done = python("import cbn", CBN_ISA="avx2")
    assert done.returncode == 1
    assert "ImportError: CBN_ISA: expected one of baseline, v3, v4, got 'avx2'" in done.stderr


@pytest.mark.parametrize("isa", ["v3", "v4"])
def test_a_build_that_the_processor_cannot_run_is_refused(isa):
    done = python(OLD_CPU, CBN_ISA=isa)
    assert done.returncode == 1
    assert (
        f"ImportError: CBN_ISA={isa}: this processor, or this build of cbn, has baseline only"
        in done.stderr
    )


def test_an_old_processor_imports_the_baseline_alone():
    done = python(OLD_CPU)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["baseline ['baseline']", "[]"]


# ---- what is in them -----------------------------------------------------------------------------

# Any instruction with a 256- or 512-bit or mask register, and the VEX forms ("v...") with a
# 128-bit one: what a processor without AVX traps on.
AVX = re.compile(r"%[yz]mm|%k[0-7]|\tv[a-z0-9]+ +.*%xmm")


def avx_instructions(module: str) -> list[str]:
    """The lines of a module's disassembly that need AVX, without their addresses."""
    spec = importlib.util.find_spec(f"cbn.{module}")  # found, not imported
    assert spec is not None
    assert spec.origin is not None
    command = ["objdump", "-d", "--no-show-raw-insn", spec.origin]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.partition(":")[2] for line in done.stdout.splitlines()]
    assert sum("%rsp" in line for line in lines) > 10  # objdump understood it
    return [line for line in lines if AVX.search(line)]


needs_objdump = pytest.mark.skipif(
    shutil.which("objdump") is None or platform.machine().lower() not in ("x86_64", "amd64"),
    reason="needs objdump and a build for x86-64",
)


@needs_objdump
@pytest.mark.parametrize("module", ["_cpu", "_cython_cbn", "_kernels", "capi"])
def test_what_every_processor_imports_holds_no_avx(module):
    assert avx_instructions(module) == []


@needs_objdump
@pytest.mark.parametrize(("module", "register"), [("_kernels_v3", "%ymm"), ("_kernels_v4", "%zmm")])
def test_the_others_do_hold_it(module, register):
    assert any(register in line for line in avx_instructions(module))
