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
from .placement import CPU, Placed, fallen_back, refused_by_cuda
from .providers import ProviderError, Providers, advice, asked, resolve, uses_cuda

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
    "run_error",
    "run_session",
    "why_no_cuda",
]

_FATAL = 4  # onnxruntime's log levels; its errors reach the caller as exceptions all the same
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"\S*onnxruntime_src/\S+:\d+ (?:\S+::)?\w+\(.*?\)(?: \[.*?\])? ?")


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
        Where to run. ``"cuda"`` is CUDA without TF32, so that float32 is float32. ``"auto"`` is
        the same where it works and the CPU elsewhere. A list is onnxruntime's own: names, or pairs
        of a name and its options, in order of preference; the options are passed on as they are,
        and CUDA's default is to use TF32.
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
        When a provider that was asked for is not available or is not in use, or when a node runs
        on the CPU and the CPU was not asked for. onnxruntime itself falls back to it in silence;
        what only computes shapes may stay there. An onnxruntime before 1.24 does not tell where a
        single node runs.
    ModelError
        When the model cannot be read, or onnxruntime refuses it; also for nodes in training mode
        that CUDA refuses, before onnxruntime is asked.
    ValueError, TypeError
        When an argument is none of the accepted ones.
    """
    wanted, required = resolve(providers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if num_threads is not None:
        options.intra_op_num_threads = _thread_count(num_threads)
    loaded = load(model)
    _refuse_what_crashes(loaded)
    if uses_cuda(providers) and (refused := refused_by_cuda(loaded)):
        if providers != "auto":
            raise ModelError(
                "CUDA refuses BatchNormalization in training mode from opset 14 on "
                f"(onnxruntime#16867), and the model has it: {_some(refused)}. cbn lower spells it "
                "out in operators that CUDA has; cbn freeze takes stored statistics in its place"
            )
        wanted = [CPU]
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
                raise ProviderError(f"{asked(required)}: {_one_line(error)}") from error
            raise ModelError(f"onnxruntime cannot load the model: {_one_line(error)}") from error
    _check_in_use(required, session, loaded)
    return session


def why_no_cuda() -> str:
    """Say why nothing can be run on CUDA here, in a line; empty where it can."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Relu", [x])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 15}, name="relu")
    try:
        run_session(
            make_session(ir.Model(graph, ir_version=8), "cuda"), {"x": np.ones(1, np.float32)}
        )
    except (ProviderError, ModelError) as error:
        return str(error)
    return ""


def provider_in_use(session: onnxruntime.InferenceSession, op_type: str | None = None) -> str:
    """The execution provider that nodes were given to, those of `op_type` where there are any.

    Several are joined by "+". An onnxruntime that does not tell (before 1.24) is taken at the
    first provider that it lists.
    """
    placed = _assignment(session)
    chosen = [node.provider for node in placed if node.op_type == op_type]
    chosen = chosen or [node.provider for node in placed]
    return "+".join(sorted(set(chosen))) or str(session.get_providers()[0])


def _assignment(session: onnxruntime.InferenceSession) -> list[Placed]:
    """Where each node runs, or nothing where onnxruntime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return []
    return [
        Placed(part.ep_name, node.name, node.op_type)
        for part in tell()
        for node in part.get_nodes()
    ]


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
        shapes = {name: array.shape for name, array in feeds.items()}
        raise run_error(error, shapes) from error


def run_error(error: Exception, shapes: Mapping[str, Sequence[int]]) -> RunError:
    """Make the error for a run that onnxruntime failed on, with its inputs of these shapes."""
    given = ", ".join(f"{name!r} {tuple(shape)}" for name, shape in shapes.items())
    return RunError(f"onnxruntime cannot run the model on inputs {given}: {_one_line(error)}")


def _check_in_use(
    required: Sequence[str], session: onnxruntime.InferenceSession, model: ir.Model
) -> None:
    if required in ([], [CPU]):
        return
    active = session.get_providers()
    unused = [name for name in required if name not in active]
    placed = _assignment(session)
    used = {node.provider for node in placed}
    idle = [name for name in required if name != CPU and used and name not in used]
    if unused:
        raise ProviderError(
            f"{asked(required)}: onnxruntime could not start {', '.join(unused)} and would use "
            f"{', '.join(active)} instead{advice(unused)}"
        )
    fallen = fallen_back(model, placed)
    if idle and fallen:
        raise ProviderError(
            f"{asked(required)}: onnxruntime gave no node to {', '.join(idle)}, and all of them "
            f"to {', '.join(sorted(used))}{advice(idle)}"
        )
    if CPU not in required and fallen:
        raise ProviderError(
            f"{asked(required)}: onnxruntime runs {len(fallen)} of {len(placed)} nodes on the CPU "
            f"instead: {_some(fallen)}. Name {CPU} after {', '.join(required)} to allow it, or "
            'choose "auto"'
        )


def _some(things: Sequence[object]) -> str:
    """Name the first few of some things."""
    rest = len(things) - 5
    return ", ".join(map(str, things[:5])) + (f" and {rest} more" if rest > 0 else "")


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
