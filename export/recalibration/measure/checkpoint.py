"""Save how far a run has come, so that a later one goes on and ends with the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime
import safetensors
from safetensors.numpy import save as to_bytes

import cbn

from ...files import ModelLike, load
from ...soundness import every_graph
from .observed import Observed

__all__ = ["Checkpoint", "CheckpointError", "checkpoint_key"]

INTERVAL = 1.0
"""Seconds between two writes: what a crash can cost. Ctrl-C and other exceptions cost nothing."""

_FORMAT = "cbn checkpoint 2"


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written, or belongs to another run; the message names it."""


def checkpoint_key(model: ModelLike, data: str, options: Mapping[str, Any]) -> str:
    """Tell a run by what decides its result.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        Its nodes and the content of its weights count, also of those in files beside it.
    data : str
        ``fingerprint()`` of the source.
    options : mapping
        What else decides the result (method, nodes, batch size, provider, threads), with values
        that JSON holds. Each is a part of the key of its own, so that an error can name it.

    Returns
    -------
    str
        ``name=digest`` of the model, the data and each option, one a line, and the versions of
        cbn and onnxruntime, which decide the bits too.
    """
    parts = {
        "model": _model_digest(load(model)),
        "data": _digest(data),
        "cbn's version": cbn.__version__,
        "onnxruntime's version": onnxruntime.__version__,
    }
    parts |= {name: _digest(json.dumps(options[name], sort_keys=True)) for name in sorted(options)}
    return "\n".join(f"{name}={digest}" for name, digest in parts.items())


class Checkpoint:
    """The state of a run in one small file: statistics so far, and after how many batches.

    A context manager: leaving it by an exception, Ctrl-C among them, writes what `save` was given
    last, and leaving it otherwise does too. `remove` deletes the file once the run is through.

    Statistics are merged in the order of the batches and stored as they are, so that a run that
    goes on from here does the same sums as one that was never interrupted.

    The file (safetensors) is written beside its target and renamed, at most once a second; it is
    never half written.
    """

    def __init__(self, path: Path, key: str, *, interval: float = INTERVAL) -> None:
        self.path = path
        self.key = key
        self.interval = interval
        self._state = _State(0, {}, 0, {}, "")
        self._written = time.monotonic()
        self._pending = False

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], key: str, *, interval: float = INTERVAL
    ) -> Checkpoint:
        """Go on from a file, or start one that does not exist yet.

        Parameters
        ----------
        path : str or os.PathLike
        key : str
            From `checkpoint_key`.
        interval : float, default: 1.0
            Seconds between two writes.

        Raises
        ------
        CheckpointError
            When the file is no checkpoint, is damaged, or belongs to another model, other data or
            other options; or when its folder does not exist.
        """
        checkpoint = cls(Path(path), key, interval=interval)
        if checkpoint.path.exists():
            checkpoint._state = checkpoint._read()
        elif not checkpoint.path.absolute().parent.is_dir():
            raise CheckpointError(
                f"cannot write the checkpoint {path}: there is no folder "
                f"{checkpoint.path.absolute().parent}"
            )
        return checkpoint

    @property
    def stage(self) -> int:
        """Index of the stage that the run is in; 0 in a run of one stage."""
        return self._state.stage

    @property
    def finished(self) -> dict[str, Observed]:
        """The statistics of the stages before, by target."""
        return dict(self._state.finished)

    def load(self) -> tuple[int, dict[str, Observed]]:
        """How many batches of the present stage are through, and what was seen in them."""
        return self._state.done, dict(self._state.statistics)

    @property
    def trail(self) -> str:
        """Digest of the batches that were read, from `save`; empty when it was given none."""
        return self._state.trail

    def save(self, done: int, statistics: Mapping[str, Observed], trail: str | None = None) -> None:
        """Note that the present stage is this far; it is written when the last write is old enough.

        Parameters
        ----------
        done : int
            Batches that `statistics` were merged from.
        statistics : mapping of str to Observed
            By target. Copied: the caller may go on with it.
        trail : str, optional
            Digest of the batches that were read so far; that of before when None.

        Raises
        ------
        CheckpointError
            When the file cannot be written.
        """
        trail = self._state.trail if trail is None else trail
        self._note(self._state._replace(done=done, statistics=dict(statistics), trail=trail))

    def finish_stage(self, statistics: Mapping[str, Observed]) -> None:
        """Note that the present stage is through, with these statistics, and the next one begins.

        Raises
        ------
        CheckpointError
            When the file cannot be written.
        """
        before = self._state
        finished = {**before.finished, **statistics}
        self._note(_State(before.stage + 1, finished, 0, {}, before.trail))

    def write(self) -> None:
        """Write what is not written yet, now.

        Raises
        ------
        CheckpointError
            When the file cannot be written.
        """
        if not self._pending:
            return
        partial = self._partial()
        try:
            with partial.open("wb") as file:
                file.write(_to_bytes(self.key, self._state))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the checkpoint {self.path}: {error.strerror or error}"
            ) from error
        self._pending = False
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the run is through."""
        self._pending = False
        self._partial().unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.write()

    def _note(self, state: _State) -> None:
        self._state = state  # one step: Ctrl-C finds the old state or the new one
        self._pending = True
        if time.monotonic() - self._written >= self.interval:
            self.write()

    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    def _read(self) -> _State:
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors' class, or the system's
            raise CheckpointError(
                f"{self.path}: not a checkpoint, or a damaged one ({error}); give another name, or "
                "delete it to start anew"
            ) from error
        if header.get("format") != _FORMAT:
            raise CheckpointError(f"{self.path}: a safetensors file that is no checkpoint")
        if header.pop("crc32", None) != _checksum(header, arrays):
            raise CheckpointError(f"{self.path}: a damaged checkpoint: delete it to start anew")
        if header["key"] != self.key:
            differing = _difference(header["key"], self.key)
            raise CheckpointError(
                f"{self.path}: the checkpoint of another run ({differing}); give another name, or "
                "delete it to start anew"
            )
        return _from_arrays(json.loads(header["state"]), arrays)


class _State(NamedTuple):
    stage: int
    finished: dict[str, Observed]
    done: int
    statistics: dict[str, Observed]
    trail: str


def _to_bytes(key: str, state: _State) -> bytes:
    # Node names are any text, so they stand in the header and the arrays are numbered.
    parts = {"finished": state.finished, "statistics": state.statistics}
    arrays = {
        f"{part}/{index}/{name}": np.ascontiguousarray(array)
        for part, statistics in parts.items()
        for index, observed in enumerate(statistics.values())
        for name, array in observed.to_arrays().items()
    }
    names = {part: list(statistics) for part, statistics in parts.items()}
    numbers = {"stage": state.stage, "done": state.done, "trail": state.trail}
    header = {"format": _FORMAT, "key": key, "state": json.dumps({**numbers, **names})}
    header["crc32"] = _checksum(header, arrays)
    return to_bytes(arrays, header)


def _from_arrays(state: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> _State:
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for label, array in arrays.items():
        owner, _, name = label.rpartition("/")
        grouped.setdefault(owner, {})[name] = array
    finished, statistics = (
        {
            name: Observed.from_arrays(grouped[f"{part}/{index}"])
            for index, name in enumerate(state[part])
        }
        for part in ("finished", "statistics")
    )
    return _State(state["stage"], finished, state["done"], statistics, state["trail"])


def _checksum(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    value = zlib.crc32(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].tobytes(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def _difference(stored: str, mine: str) -> str:
    """Say which parts of two keys differ."""
    one, two = (
        dict(line.partition("=")[::2] for line in key.splitlines()) for key in (stored, mine)
    )
    differing = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    return f"{' and '.join(differing)} differ{'s' if len(differing) == 1 else ''}"


def _model_digest(model: ir.Model) -> str:
    digest = hashlib.sha256()
    for graph in every_graph(model):
        for value in (*graph.inputs, *graph.outputs):
            digest.update(f"{value.name} {value.dtype} {value.shape}\n".encode())
        for name, value in graph.initializers.items():
            tensor = value.const_value
            digest.update(f"{name}\n".encode())
            if tensor is not None:
                digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(_content(tensor))
        for node in graph:
            digest.update(ir.to_proto(node).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _content(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return tensor.tobytes()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
