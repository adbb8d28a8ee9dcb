"""What tests of ``cbn.export`` share."""

from __future__ import annotations

import onnxruntime
import pytest
from pretended_cuda import CPU, CUDA, PretendedCuda


@pytest.fixture
def pretend(monkeypatch):
    """Start to pretend that there is CUDA; the arguments are those of ``PretendedCuda``."""

    def start(*arguments, **options) -> PretendedCuda:
        pretended = PretendedCuda(*arguments, **options)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", pretended)
        return pretended

    return start
