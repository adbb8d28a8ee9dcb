"""``cbn info``."""

from __future__ import annotations

import json
import platform

import numpy as np
import onnxruntime

import cbn


def test_shows_versions_kernels_and_providers(invoke):
    shown = invoke("info")
    assert shown.exit_code == 0
    lines = dict(line.split(None, 1) for line in shown.stdout.splitlines() if line)
    assert lines["cbn"] == cbn.__version__
    assert lines["NumPy"] == np.__version__
    assert "CPUExecutionProvider" in shown.stdout


def test_json_holds_the_same(invoke):
    shown = json.loads(invoke("info", "--json").stdout)
    assert shown["versions"]["Python"] == platform.python_version()
    assert shown["versions"]["onnxruntime"] == onnxruntime.__version__
    assert shown["kernels"] == cbn.build_info()
    assert shown["providers"] == onnxruntime.get_available_providers()
