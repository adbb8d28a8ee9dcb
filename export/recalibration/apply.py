"""Write statistics into a copy of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..files import ModelError
from ..freeze import to_eval
from ..nodes import BatchNormNode, find_nodes
from ..rewrite import KEPT, Changes, RewriteRow, drop_unused, run_rewrite
from ..surgery import Names, store_constant
from .measure.targets import Target, Targets

__all__ = ["apply_statistics", "rounded"]

_MEAN, _VAR = 3, 4  # their places among the inputs of the node


def apply_statistics(
    targets: Targets, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> ir.Model:
    """Give the targets of a model new statistics.

    Parameters
    ----------
    targets : Targets
    statistics : mapping of str to (mean, var)
        By the name of the target; float arrays of shape (C,), the variance the population's
        (ddof=0), which is what ONNX normalizes with. Targets that are not in it keep what they
        have.

    Returns
    -------
    onnx_ir.Model
        A copy of ``targets.model`` that shares all its weights. Statistics are rounded once, to the
        type that the model stores them in. The nodes given new statistics are in eval mode, and
        what they gave as running statistics is now the ones they use. An initializer that serves
        these nodes alone keeps its name; otherwise they get ones of their own, so that no other
        node changes.

    Raises
    ------
    ModelError
        When `statistics` names no target, or has arrays that do not fit it: another shape, NaN or
        infinity, also after rounding, or a variance below 0.
    """
    by_name = {target.name: target for target in targets.targets}
    unknown = sorted(set(statistics) - set(by_name))
    if unknown:
        raise ModelError(f"there is no target {unknown[0]!r}: there are {', '.join(by_name)}")
    given = {
        name: rounded(by_name[name], *map(np.asarray, pair)) for name, pair in statistics.items()
    }

    def rewrite(copy: ir.Model) -> Changes:
        names = Names(copy)
        nodes = {norm.name: norm for norm in find_nodes(copy)}
        changed = set()
        for name, (mean, var) in given.items():
            members = [nodes[member] for member in by_name[name].members]
            _store(copy, members, _MEAN, mean, names)
            _store(copy, members, _VAR, var, names)
            for norm in members:
                if norm.mode == "training":
                    to_eval(norm, names)
                changed.add(norm.name)
        done = {True: "re-estimated", False: KEPT}
        return Changes([RewriteRow(name, done[name in changed]) for name in nodes])

    return run_rewrite(targets.model, rewrite, prove_it=False).model


def rounded(target: Target, mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round statistics to the type that the model stores them in.

    Raises
    ------
    ModelError
        When they do not fit the target: see `apply_statistics`.
    """
    result = []
    for name, array in (("mean", mean), ("var", var)):
        if array.shape != (target.channels,):
            raise ModelError(
                f"{target.name!r}: expected {name} of shape ({target.channels},), got {array.shape}"
            )
        with np.errstate(over="ignore"):
            stored = array.astype(np.float64).astype(target.dtype)
        if not np.isfinite(stored.astype(np.float64)).all():
            raise ModelError(
                f"{target.name!r}: expected {name} that {target.dtype} can hold, got NaN, infinity "
                "or values too large for it"
            )
        result.append(stored)
    if (var < 0).any():
        raise ModelError(f"{target.name!r}: expected var of 0 or more, got {var.min()}")
    return result[0], result[1]


def _store(
    model: ir.Model, members: list[BatchNormNode], index: int, array: np.ndarray, names: Names
) -> None:
    """Give all members one initializer: the one they had, if it serves nothing else."""
    old = members[0].node.inputs[index]
    assert old is not None
    mine = {(id(norm.node), index) for norm in members}
    if old.is_initializer() and not old.is_graph_output():
        uses = {(id(use.node), use.idx) for use in old.uses()}
        if uses == mine:
            tensor = ir.tensor(array)
            tensor.name = str(old.name)
            old.const_value = tensor
            return
    node = members[0].node
    base = f"{node.name or node.outputs[0].name}/running_{'mean' if index == _MEAN else 'var'}"
    value = store_constant(model.graph, array, names.new(base))
    before = [norm.node.inputs[index] for norm in members]
    for norm in members:
        norm.node.replace_input_with(index, value)
    drop_unused(before)
