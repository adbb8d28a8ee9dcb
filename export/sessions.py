"""onnxruntime sessions that run where they were asked to, or say why not."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .files import LARGEST_INLINE, ModelError, ModelLike, load

try:
    import onnxruntime

    from .running import run
except ModuleNotFoundError as error:
    raise ImportError(
        'running models needs the package onnxruntime: pip install "cbn[onnx]", '
        'or "cbn[gpu]" for CUDA'
    ) from error

__all__ = [
    "ProviderError",
    "Providers",
    "RunError",
    "make_session",
    "provider_in_use",
    "run_session",
]

Providers = str | Sequence[str | tuple[str, Mapping[str, Any]]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_FATAL = 4  # onnxruntime's log levels; its errors reach the caller as exceptions all the same
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"\S*onnxruntime_src/\S+:\d+ (?:\S+::)?\w+\(.*?\)(?: \[.*?\])? ?")


class ProviderError(ValueError):
    """The execution provider that was asked for is not the one in use."""


class RunError(ModelError):
    """A model was loaded and failed in the run."""


def make_session(
    model: ModelLike,
    providers: Providers = "cpu",
    *,
    optimize: bool = True,
    num_threads: int | None = None,
) -> onnxruntime.InferenceSession:
    """Load a model into onnxruntime.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed. External data stays on the disk and is read by onnxruntime.
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
        Where to run. ``"auto"`` is CUDA where it works and the CPU elsewhere. A list is
        onnxruntime's own: names, or pairs of a name and its options, in order of preference.
    optimize : bool, default: True
        All of onnxruntime's graph optimizations, or none of them: then each node runs as written.
    num_threads : int, optional
        Threads within an operator; onnxruntime's own choice when None.

    Returns
    -------
    onnxruntime.InferenceSession
        Its log is silent: what matters is raised.

    Raises
    ------
    ProviderError
        When a provider that was asked for is not available or is not in use. onnxruntime itself
        falls back to the CPU in silence.
    ModelError
        When the model cannot be read, or onnxruntime refuses it.
    ValueError, TypeError
        When an argument is none of the accepted ones.
    """
    wanted, required = _resolve(providers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if num_threads is not None:
        options.intra_op_num_threads = _thread_count(num_threads)
    loaded = load(model)
    _refuse_what_crashes(loaded)
    with _source(loaded) as (content, folder):
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", folder
            )
        try:
            session = onnxruntime.InferenceSession(
                content, options, providers=wanted, enable_fallback=0
            )
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # onnxruntime's classes share no base but Exception
            if required and "ExecutionProvider" in str(error):
                raise ProviderError(f"{_asked(required)}: {_one_line(error)}") from error
            raise ModelError(f"onnxruntime cannot load the model: {_one_line(error)}") from error
    _check_in_use(required, session)
    return session


def provider_in_use(session: onnxruntime.InferenceSession, op_type: str | None = None) -> str:
    """The execution provider that nodes were given to, those of `op_type` where there are any.

    Several are joined by "+". An onnxruntime that does not tell (before 1.24) is taken at the
    first provider that it lists.
    """
    assigned = _assignment(session)
    chosen = [name for name, op in assigned if op == op_type] or [name for name, _ in assigned]
    return "+".join(sorted(set(chosen))) or str(session.get_providers()[0])


def _assignment(session: onnxruntime.InferenceSession) -> list[tuple[str, str]]:
    """Provider and operator of each node, or nothing where onnxruntime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return []
    return [(part.ep_name, node.op_type) for part in tell() for node in part.get_nodes()]


def _refuse_what_crashes(model: ir.Model) -> None:
    """Refuse what onnxruntime 1.32 does not survive: the process would end, with no exception."""
    for graph in model.graphs():
        for node in graph:
            if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
                given = [bool(output.name) for output in node.outputs[1:3]]
                if any(given) and not all([*given, len(given) == 2]):
                    raise ModelError(
                        f"node {node.name!r} is in training mode and leaves out one of its outputs "
                        "running_mean and running_var, on which onnxruntime crashes: give both a "
                        "name, or neither"
                    )


def run_session(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run a session and return its outputs by name.

    Ctrl-C ends the run, which may be a loop without an end.

    Raises
    ------
    RunError
        When onnxruntime fails on these inputs; the message holds its reason and their shapes.
    """
    chosen = [output.name for output in session.get_outputs()] if names is None else list(names)
    try:
        return dict(zip(chosen, run(session, feeds, chosen), strict=True))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # onnxruntime's classes share no base but Exception
        shapes = ", ".join(f"{name!r} {tuple(array.shape)}" for name, array in feeds.items())
        raise RunError(
            f"onnxruntime cannot run the model on inputs {shapes}: {_one_line(error)}"
        ) from error


def _resolve(
    providers: Providers,
) -> tuple[list[str | tuple[str, dict[str, Any]]], list[str]]:
    """Split into what onnxruntime is given and the names that must be in use afterwards."""
    available = onnxruntime.get_available_providers()
    if isinstance(providers, str):
        short: dict[str, list[str | tuple[str, dict[str, Any]]]] = {
            "cpu": [CPU],
            "cuda": [CUDA],
            "auto": [CUDA, CPU] if CUDA in available else [CPU],
        }
        if providers not in short:
            raise ValueError(
                'expected providers "cpu", "cuda", "auto" or a list of onnxruntime\'s own names, '
                f"got {providers!r}"
            )
        wanted = short[providers]
    else:
        wanted = [_entry(item) for item in providers]
        if not wanted:
            raise ValueError("expected at least one provider, got an empty list")
    names = [item if isinstance(item, str) else item[0] for item in wanted]
    missing = [name for name in names if name not in available]
    if missing:
        raise ProviderError(
            f"{_asked(names)}: {', '.join(missing)} is not in this onnxruntime "
            f"{onnxruntime.__version__}, which has {', '.join(available)}{_advice(missing)}"
        )
    return wanted, [] if providers == "auto" else names


def _entry(item: Any) -> str | tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        return item
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str):
        return item[0], dict(item[1])
    raise TypeError(f"expected a provider as a name or a pair (name, options), got {item!r}")


def _check_in_use(required: Sequence[str], session: onnxruntime.InferenceSession) -> None:
    active = session.get_providers()
    unused = [name for name in required if name not in active]
    used = {name for name, _ in _assignment(session)}
    idle = [name for name in required if name != CPU and used and name not in used]
    if idle and not unused:
        raise ProviderError(
            f"{_asked(required)}: onnxruntime gave no node to {', '.join(idle)}, and all of them "
            f"to {', '.join(sorted(used))}{_advice(idle)}"
        )
    if unused:
        raise ProviderError(
            f"{_asked(required)}: onnxruntime could not start {', '.join(unused)} and would use "
            f"{', '.join(active)} instead{_advice(unused)}"
        )


def _asked(names: Sequence[str]) -> str:
    return f"asked for {', '.join(names)}"


def _advice(names: Sequence[str]) -> str:
    if CUDA not in names:
        return ""
    return (
        '; for CUDA: pip uninstall onnxruntime, then pip install "cbn[gpu]", '
        "with an NVIDIA driver, CUDA and cuDNN that it can load"
    )


def _thread_count(num_threads: int) -> int:
    if isinstance(num_threads, bool) or not isinstance(num_threads, int | np.integer):
        raise TypeError(f"expected num_threads as an int, got {num_threads!r}")
    if num_threads < 1:
        raise ValueError(f"expected num_threads of 1 or more, got {num_threads}")
    return int(num_threads)


@contextmanager
def _source(model: ir.Model) -> Iterator[tuple[bytes | str, str | None]]:
    """Give the model as onnxruntime reads it: its bytes, or a temporary file when too large.

    The second item is the folder of its external data, which bytes alone do not tell.
    """
    tensors = [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    folders = {os.fspath(tensor.base_dir) for tensor in external}
    inline = sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))
    if inline <= LARGEST_INLINE and len(folders) <= 1:
        try:
            content = ir.to_proto(model).SerializeToString()
        except Exception as error:  # onnx-ir and protobuf raise whatever a broken graph makes them
            raise ModelError(f"the model cannot be serialized: {_one_line(error)}") from error
        yield content, folders.pop() if folders else None
        return
    with tempfile.TemporaryDirectory(prefix="cbn-") as folder:
        path = Path(folder, "model.onnx")
        ir.save(model, path, external_data="model.data")
        yield str(path), None


def _one_line(error: Exception) -> str:
    """Onnxruntime's message without its prefix, its source files and its line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _SOURCE.sub("", _PREFIX.sub("", text)).strip()
