"""What holds for all tests."""

from __future__ import annotations

import os

import pytest

# Tests that start Python must find the package that is tested, not the checkout's folder of that
# name, which holds no compiled kernels unless they were built in place.
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``cuda`` where nothing can run on CUDA, with onnxruntime's reason."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    from cbn.export.sessions import why_no_cuda

    if reason := why_no_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA here: {reason}"))
