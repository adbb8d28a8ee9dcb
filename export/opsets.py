"""The one table of BatchNormalization's versions, and which opsets cbn builds.

Source: the ONNX operator changelog. Every version takes (X, scale, B, mean, var) and has the
attributes epsilon = 1e-5 and momentum = 0.9; momentum weighs the *old* running value, one minus
what torch calls momentum.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import onnx

__all__ = [
    "DEFAULT_EPSILON",
    "DEFAULT_MOMENTUM",
    "DEFAULT_OPSET",
    "OLDEST_BUILT",
    "VERSIONS",
    "Mode",
    "OperatorVersion",
    "ir_version_for",
    "mode_of",
    "newest_opset",
    "resolve_opset",
    "version_at",
]

Mode = Literal["eval", "training"]

DEFAULT_EPSILON = 1e-5
DEFAULT_MOMENTUM = 0.9

OLDEST_BUILT = 7
"""The oldest opset that onnxruntime has a BatchNormalization kernel for."""

DEFAULT_OPSET = 18
"""What ``to_onnx`` writes unasked: every onnxruntime that cbn supports loads it, it is what
``torch.onnx`` writes by default, and no later opset changed BatchNormalization. A fixed number,
so that the same call gives the same file whatever is installed."""


@dataclasses.dataclass(frozen=True)
class OperatorVersion:
    """One version of the operator.

    Attributes
    ----------
    since : int
        The first opset that has it.
    attributes : tuple of str
        What a node may carry.
    outputs : tuple of str
        All outputs, in order; the first alone is required.
    mode_from : {"is_test", "output count", "training_mode"}
        What tells evaluation from training.
    parameter_types : str
        Which types scale, B, mean and var have, relative to X's.
    """

    since: int
    attributes: tuple[str, ...]
    outputs: tuple[str, ...]
    mode_from: Literal["is_test", "output count", "training_mode"]
    parameter_types: str = "all of X's type"

    @property
    def spatial(self) -> bool:
        """Whether nodes may ask for statistics per activation (spatial=0)."""
        return "spatial" in self.attributes


_FIVE = ("Y", "mean", "var", "saved_mean", "saved_var")
_THREE = ("Y", "running_mean", "running_var")

VERSIONS: tuple[OperatorVersion, ...] = (
    OperatorVersion(
        1, ("consumed_inputs", "epsilon", "is_test", "momentum", "spatial"), _FIVE, "is_test"
    ),
    OperatorVersion(6, ("epsilon", "is_test", "momentum", "spatial"), _FIVE, "is_test"),
    OperatorVersion(7, ("epsilon", "momentum", "spatial"), _FIVE, "output count"),
    OperatorVersion(9, ("epsilon", "momentum"), _FIVE, "output count"),
    OperatorVersion(
        14,
        ("epsilon", "momentum", "training_mode"),
        _THREE,
        "training_mode",
        "scale and B of X's type; mean and var share one",
    ),
    OperatorVersion(
        15,
        ("epsilon", "momentum", "training_mode"),
        _THREE,
        "training_mode",
        "scale and B share one; mean and var share one",
    ),
)


def version_at(opset: int) -> OperatorVersion:
    """Return the operator version in force at an opset."""
    if opset < 1:
        raise ValueError(f"expected an ONNX opset of 1 or later, got {opset}")
    return max((v for v in VERSIONS if v.since <= opset), key=lambda v: v.since)


def mode_of(
    version: OperatorVersion, *, is_test: int = 0, training_mode: int = 0, outputs: int = 1
) -> Mode:
    """Tell the mode of a node from its attributes and the number of outputs it uses."""
    if version.mode_from == "is_test":
        return "eval" if is_test else "training"
    if version.mode_from == "output count":
        return "training" if outputs > 1 else "eval"
    return "training" if training_mode else "eval"


def newest_opset() -> int:
    """Return the newest opset that the installed onnx knows."""
    return int(onnx.defs.onnx_opset_version())


def resolve_opset(opset: int | None) -> int:
    """Check an opset asked for, or give the default.

    Raises
    ------
    ValueError
        When it is not an integer from 7 to the newest that the installed onnx knows.
    """
    if opset is None:
        return min(DEFAULT_OPSET, newest_opset())
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise TypeError(f"expected opset as an int, got {opset!r}")
    if not OLDEST_BUILT <= opset <= newest_opset():
        raise ValueError(
            f"expected opset from {OLDEST_BUILT} to {newest_opset()} "
            f"(onnx {onnx.__version__}), got {opset}"
        )
    return opset


def ir_version_for(opset: int) -> int:
    """Return the lowest IR version that an opset may be written with, so that old readers load it.

    Not under 4: before that, every initializer had to be a graph input too.
    """
    needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return max(4, int(needed))
