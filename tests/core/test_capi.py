"""The C-level door, used by a Cython module that is built against the installed package."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import cbn

SOURCE = """
from cbn cimport capi

RELU, BAD_ARGUMENT = capi.RELU, capi.BAD_ARGUMENT


def scale_shift(
    const float[:, :, ::1] x, float[:, :, ::1] y, const double[:, ::1] values, int activation,
    int num_threads
):
    cdef int status
    with nogil:
        status = capi.scale_shift_f32(
            &x[0, 0, 0], &y[0, 0, 0], x.shape[0], x.shape[1], x.shape[2], &values[0, 0],
            activation, 0, num_threads)
    return status


def batch_norm(
    const double[:, :, ::1] x, double[:, :, ::1] y, const double[::1] weight,
    const double[::1] bias, double[::1] mean, double[::1] var, double eps
):
    cdef int status
    with nogil:
        status = capi.batch_norm_f64(
            &x[0, 0, 0], &y[0, 0, 0] if y is not None else NULL, x.shape[0], x.shape[1], x.shape[2],
            &weight[0] if weight is not None else NULL, &bias[0] if bias is not None else NULL,
            eps, &mean[0], &var[0], 1)
    return status
"""

SETUP = """
from Cython.Build import cythonize
from setuptools import setup

setup(name="user", ext_modules=cythonize("user.pyx", language_level=3))
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """The module, compiled in a folder of its own, where only the package itself can be found."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user.pyx").write_text(SOURCE)
    (folder / "setup.py").write_text(SETUP)
    package = str(Path(cbn.__file__).parents[1])
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": package},
        check=True,
        capture_output=True,
        timeout=300,
    )
    path = folder / f"user{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("user", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [(2, 5, 49), (4, 3, 3000), (7, 33, 1), (3, 2, 5)])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_scale_shift_gives_the_bits_of_the_python_object(user, shape, num_threads):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    f = cbn.ScaleShift(*rng.normal(size=(3, shape[1])), activation="relu")
    y = np.empty_like(x)
    values = np.stack([f.shift, f.scale, f.bias])
    assert user.scale_shift(x, y, values, user.RELU, num_threads) == 0
    np.testing.assert_array_equal(y, f(x))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_gives_the_bits_of_the_python_function(user, affine):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, size=(4, 6, 700))
    weight, bias = rng.normal(size=(2, 6)) if affine else (None, None)
    y, mean, var = np.empty_like(x), np.empty(6), np.empty(6)
    assert user.batch_norm(x, y, weight, bias, mean, var, 1e-5) == 0
    np.testing.assert_array_equal(y, cbn.batch_norm(x, None, None, weight, bias, training=True))
    np.testing.assert_array_equal(mean, cbn.batch_stats(x).mean)
    np.testing.assert_array_equal(var, cbn.batch_stats(x).var)


def test_statistics_alone(user):
    x = np.random.default_rng(0).normal(size=(4, 6, 70))
    mean, var = np.empty(6), np.empty(6)
    assert user.batch_norm(x, None, None, None, mean, var, 0.0) == 0
    np.testing.assert_array_equal(mean, cbn.batch_stats(x).mean)


@pytest.mark.parametrize(("activation", "num_threads"), [(6, 1), (-1, 1), (0, 0)])
def test_bad_arguments_are_refused_and_nothing_is_written(user, activation, num_threads):
    x, y = np.ones((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)
    status = user.scale_shift(x, y, np.ones((3, 3)), activation, num_threads)
    assert status == user.BAD_ARGUMENT
    assert not y.any()


def test_a_negative_eps_is_refused(user):
    x, mean, var = np.ones((2, 3, 4)), np.zeros(3), np.zeros(3)
    assert user.batch_norm(x, None, None, None, mean, var, -1.0) == user.BAD_ARGUMENT
    assert not mean.any()
