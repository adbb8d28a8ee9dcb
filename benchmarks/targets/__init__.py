"""What cbn sets out to reach in speed and size, measured: ``python -m benchmarks --targets``."""

from __future__ import annotations

from benchmarks.targets.command import main

__all__ = ["main"]
