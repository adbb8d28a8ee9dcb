"""What was measured with: processor, cache, threads, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("cbn", "numpy", "torch", "onnxruntime", "onednn-cpu-gomp")
L2_UNKNOWN = 1 << 20


def machine(threads: int) -> dict[str, Any]:
    """State it all, for the head of a table."""
    import cbn

    versions = {name: version(name) for name in PACKAGES}
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "L2": f"{l2_bytes() / 2**20:g} MiB",
        "threads": threads,
        "isa": cbn.build_info()["isa"],
        "Python": platform.python_version(),
        **{name: value for name, value in versions.items() if value},
    }


def processor() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def l2_bytes() -> int:
    """Return the size of a core's second-level cache; 1 MiB where the system does not tell."""
    for level in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/level"):
        if level.read_text().strip() == "2":
            kib = (level.parent / "size").read_text().strip().removesuffix("K")
            return int(kib) << 10
    return L2_UNKNOWN


def version(name: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        module = sys.modules.get(name)  # cbn in an uninstalled checkout
        return getattr(module, "__version__", None)
