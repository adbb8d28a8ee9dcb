"""Save how far a run has come, so that a later one goes on and ends with the same bits."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save as to_bytes

from ...results import counted
from ...whole_file import WriteError, obstacle, whole_file
from .checkpoint_key import difference
from .observed import Observed

__all__ = ["Checkpoint", "CheckpointError"]

INTERVAL = 1.0
"""Seconds between two writes: what a crash can cost. Ctrl-C and other exceptions cost nothing."""

_FORMAT = "cbn checkpoint 2"


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written, or belongs to another run; the message names it."""


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
        elif reason := obstacle(path):
            raise CheckpointError(f"cannot write the checkpoint {path}: {reason}")
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
    def summary(self) -> str:
        """How much a run that goes on from here need not measure again; empty where nothing."""
        batches, stages = counted(self._state.done, "batch"), counted(self.stage, "stage")
        if self.stage:
            return f"{stages} and {batches} of the next" if self._state.done else stages
        return batches if self._state.done else ""

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
        try:
            with whole_file(self.path, partial=self._partial()) as written:
                written.write_bytes(_to_bytes(self.key, self._state))
        except WriteError as error:
            raise CheckpointError(
                f"cannot write the checkpoint {self.path}: {error.reason}"
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
        target = Path(os.path.realpath(self.path))
        return target.with_name(f".{target.name}.partial")

    def _read(self) -> _State:
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                header = file.metadata() or {}
                # what safetensors opens is no mapping
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
            differing = difference(header["key"], self.key)
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
