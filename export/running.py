"""The call into onnxruntime: one that Ctrl-C ends, and that takes bfloat16."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

__all__ = ["as_taken", "run", "run_bound"]


def run(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> list[Any]:
    """Run a session and return the outputs of these names.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, once onnxruntime has left the node that it was in: also out of a loop that would
        never end.
    Exception
        What onnxruntime raises; its classes share no base. It gives no output of bfloat16.
    """
    given = {name: as_taken(array) for name, array in feeds.items()}
    return list(_interruptible(session.run, list(names), given))


def run_bound(
    session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding, *, wait: bool = True
) -> None:
    """Run a session on what is bound to it; raises what ``run`` does.

    Without `wait`, a device is not waited for and Ctrl-C ends nothing that was begun.
    """
    if wait:
        _interruptible(session.run_with_iobinding, binding)
        return
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    session.run_with_iobinding(binding, options)


def _interruptible(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call onnxruntime, with run options as the last argument by which Ctrl-C ends the run."""
    options = onnxruntime.RunOptions()
    if threading.current_thread() is not threading.main_thread():  # which alone hears of Ctrl-C
        return call(*arguments, options)
    # It hears of it between two steps of Python, so another thread makes the call.
    result = _caller().submit(call, *arguments, options)
    try:
        while not result.done():
            futures.wait([result], timeout=0.5)  # Windows interrupts no wait without an end
    except BaseException:
        options.terminate = True
        futures.wait([result])
        raise
    return result.result()


@functools.cache
def _caller() -> futures.ThreadPoolExecutor:
    # Kept: while the threads of the run before still spin, a new one takes a millisecond to start.
    return futures.ThreadPoolExecutor(1, "onnxruntime")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_caller.cache_clear)


def as_taken(array: Any) -> Any:
    """Return an array as onnxruntime takes it, which knows bfloat16 but not NumPy's type for it."""
    if getattr(array, "dtype", None) != ml_dtypes.bfloat16:
        return array
    bits = np.ascontiguousarray(array).view(np.uint16).reshape(array.shape)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
