"""``cbn info``: versions, kernels and execution providers."""

from __future__ import annotations

import platform
from typing import Any

from cbn.cli.options import AsJson
from cbn.cli.output import print_json, print_pairs

__all__ = ["info"]

# What people call the entries of cbn.build_info().
_LABELS = {
    "isa": "instruction set",
    "vector_bytes": "bytes a vector",
    "threaded": "threads in the kernels",
}


def info(as_json: AsJson = False) -> None:
    """Show versions, kernels, threads and providers.

    The instruction set and threads are those that cbn's kernels use here; the execution providers
    are those of the installed onnxruntime.

    Example: cbn info --json
    """
    report = _collect()
    if as_json:
        print_json(report)
        return
    pairs = dict(report["versions"])
    for name, value in report["kernels"].items():
        shown = ", ".join(value) if isinstance(value, list) else value
        pairs[_LABELS.get(name, name)] = "none" if shown is None else shown
    pairs["execution providers"] = ", ".join(report["providers"])
    print_pairs(pairs)


def _collect() -> dict[str, Any]:
    import numpy
    import onnx
    import onnx_ir
    import onnxruntime

    import cbn

    return {
        "versions": {
            "cbn": cbn.__version__,
            "Python": platform.python_version(),
            "NumPy": numpy.__version__,
            "onnx": onnx.__version__,
            "onnx-ir": onnx_ir.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "kernels": cbn.build_info(),
        "providers": onnxruntime.get_available_providers(),
    }
