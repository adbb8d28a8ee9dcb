"""What every rewrite of a model shares: the rows, the result, and how it is run and proved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from .constants import OVERRIDABLE_SINCE, Constant
from .data import DataLike
from .files import ModelError, ModelLike, load
from .nodes import BatchNormNode, find_nodes
from .proof import ProofReport, prove
from .results import Report, counted, to_plain
from .sessions import Providers

__all__ = [
    "KEPT",
    "Changes",
    "Difference",
    "RewriteResult",
    "RewriteRow",
    "drop_unused",
    "is_fixed",
    "run_rewrite",
]

KEPT = "kept"
"""The action of a row whose node stays as it was."""


@dataclasses.dataclass(frozen=True)
class RewriteRow:
    """What became of one node.

    Attributes
    ----------
    name : str
        As ``find_nodes`` names it in the model before.
    action : str
        What was done, such as ``"folded into Conv 'conv1'"``, or ``"kept"``.
    ok : bool
        False where the node was to change and could not. A node that rightly stays is True.
    reason : str
        Why it stays, or what to know of what was done.
    value : str
        The value of the model before, in its main graph, that the proof compares for this node;
        empty where there is none.
    error, budget : float or None
        How far that value moved in float64, and how far it may have; see ``ProofRow``. Filled in
        by the proof.
    """

    name: str
    action: str
    ok: bool = True
    reason: str = ""
    value: str = ""
    error: float | None = None
    budget: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the node was changed."""
        return self.action != KEPT

    def cells(self) -> Sequence[str]:
        """One string a column."""
        numbers = ("-" if n is None else f"{n:.2e}" for n in (self.error, self.budget))
        return (self.name, self.action, *numbers, self.reason or "-")


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a rewrite function did to the model that it was given.

    Attributes
    ----------
    rows : sequence of RewriteRow
        One for each BatchNormalization node of the model before.
    touched : mapping of str to str
        Values of the main graph before, each with the value of the main graph after that must be
        equal to it: what the proof compares beside the outputs.
    notes : sequence of str
        Lines for the reader: what else was done or is to be known.
    reference : onnx_ir.Model, optional
        What the model after must be equal to, when that is not the model before. A rewrite that
        means to change outputs (freezing) gives the model that it means, made in another way.
    """

    rows: Sequence[RewriteRow]
    touched: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    reference: ir.Model | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far an output moved, where a rewrite changes it on purpose.

    Attributes
    ----------
    name : str
        The output.
    max_abs_difference : float or None
        None for what holds no numbers.
    largest : float or None
        The largest absolute value before.
    same_argmax : float or None
        For floats of shape (N, K): the share of rows whose largest value is in the same place.
    """

    name: str
    max_abs_difference: float | None = None
    largest: float | None = None
    same_argmax: float | None = None

    @classmethod
    def between(cls, name: str, before: Sequence[Any], after: Sequence[Any]) -> Difference:
        """Compare an output over all batches."""
        arrays = (*before, *after)
        if not all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in arrays):
            return cls(name)
        apart, largest, same, rows = 0.0, 0.0, 0, 0
        for old, new in zip(before, after, strict=True):
            if old.shape != new.shape:
                return cls(name)
            with np.errstate(invalid="ignore"):
                distance = np.abs(old.astype(np.float64) - new.astype(np.float64))
            apart = max(apart, float(distance.max(initial=0)))
            largest = max(largest, float(np.abs(old.astype(np.float64)).max(initial=0)))
            if old.ndim == 2 and old.dtype.kind == "f" and old.shape[1] > 1:
                same += int((old.argmax(axis=1) == new.argmax(axis=1)).sum())
                rows += len(old)
        return cls(name, apart, largest, same / rows if rows else None)

    def __str__(self) -> str:
        if self.max_abs_difference is None:
            return f"{self.name} was not compared"
        text = (
            f"{self.name} differs by up to {self.max_abs_difference:.3g}, where the largest value "
            f"was {self.largest:.3g}"
        )
        if self.same_argmax is not None:
            text += f"; {self.same_argmax:.1%} of the rows keep their largest value in its place"
        return text


@dataclasses.dataclass(frozen=True)
class RewriteResult(Report):
    """A rewritten model with a row per node and its proof.

    True when every node that was to change did, and the proof holds. Without a proof (nothing
    was changed, or none was asked for) the rows alone decide.

    Attributes
    ----------
    rows : tuple of RewriteRow
    model : onnx_ir.Model
        The new model. It shares the weights that did not change with the one before, which is as
        it was.
    proof : ProofReport or None
    notes : tuple of str
        What there is to know beside the rows.
    differences : tuple of Difference
        How far the outputs moved, where the rewrite changes them on purpose.
    """

    model: ir.Model = dataclasses.field(repr=False)
    proof: ProofReport | None = None
    notes: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()

    columns: ClassVar[tuple[str, ...]] = ("node", "action", "max |error|", "budget", "reason")

    @property
    def ok(self) -> bool:
        """Whether every node that was to change did, and the proof, if there is one, holds."""
        return super().ok and (self.proof is None or self.proof.ok)

    @property
    def changed(self) -> int:
        """How many nodes were changed."""
        return sum(row.changed for row in self.rows)

    @property
    def summary(self) -> str:
        """One line: what was done, and whether it is proved."""
        proof = "nothing to prove" if not self.changed else "not proved: no proof was asked for"
        if self.proof is not None:
            proof = self.proof.summary
        return f"{self.changed} of {counted(len(self.rows), 'node')} changed; {proof}"

    def __str__(self) -> str:
        parts = [super().__str__(), *self.notes, self.summary]
        return "\n\n".join([*parts, *([str(self.proof)] if self.proof is not None else [])])

    def to_dict(self) -> dict[str, Any]:
        """The result for ``json.dumps``, without the model."""
        return {
            "ok": self.ok,
            "changed": self.changed,
            "summary": self.summary,
            "rows": to_plain(self.rows),
            "notes": list(self.notes),
            "differences": to_plain(self.differences),
            "proof": None if self.proof is None else self.proof.to_dict(),
        }


def run_rewrite(
    model: ModelLike,
    rewrite: Callable[[ir.Model], Changes],
    *,
    data: DataLike | None = None,
    seed: int = 0,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    prove_it: bool = True,
) -> RewriteResult:
    """Rewrite a copy of a model and prove that it computes the same.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    rewrite : callable
        Takes a copy of the model, whose values have the same names and whose weights are shared
        with the original (so it replaces tensors and never writes into them), changes it in place
        and says what it did.
    data, seed, providers, num_threads
        For the proof: see ``prove``.
    prove_it : bool, default: True
        Whether to prove it. Nothing is proved when nothing was changed.

    Returns
    -------
    RewriteResult

    Raises
    ------
    ModelError
        When the model cannot be read or rewritten, or a batch norm has parameters that do not fit.
    DataError
        When the data cannot be read or does not fit the model.
    ProviderError
        When a provider that was asked for is not in use.
    """
    before = load(model)
    found = find_nodes(before)
    for norm in found:
        _require_fitting(norm)
    after = before.clone()
    done = rewrite(after)
    paths = {norm.name: norm.path for norm in found}
    rows = tuple(_say_where(row, paths.get(row.name, ())) for row in done.rows)
    proof = None
    if any(row.changed for row in rows):
        _settle_inputs(before, after)
        if prove_it:
            proof = prove(
                before if done.reference is None else done.reference,
                after,
                data,
                seed=seed,
                providers=providers,
                touched=done.touched,
                num_threads=num_threads,
            )
            rows = tuple(_with_numbers(row, proof) for row in rows)
    return RewriteResult(rows, after, proof, tuple(done.notes))


def _require_fitting(norm: BatchNormNode) -> None:
    """Refuse parameters that no batch norm of such an input has: nothing can be made of them."""
    if len(norm.node.inputs) != 5 or any(value is None for value in norm.node.inputs):
        raise ModelError(
            f"BatchNormalization {norm.name!r}: expected inputs X, scale, B, mean and var, got "
            f"{sum(value is not None for value in norm.node.inputs)} of them"
        )
    wanted = None
    if norm.input_shape is not None and len(norm.input_shape) > 1:
        wanted = norm.input_shape[1]
    for name, constant in norm.parameters.items():
        if constant.array is None or not norm.spatial:
            continue
        shape = constant.array.shape
        wanted = wanted if isinstance(wanted, int) or len(shape) != 1 else shape[0]
        if len(shape) != 1 or shape[0] != wanted:
            channels = wanted if isinstance(wanted, int) else "C"
            raise ModelError(
                f"BatchNormalization {norm.name!r}: expected {name} of shape [{channels}], got "
                f"{list(shape)}"
            )


def is_fixed(constant: Constant, model: ir.Model) -> bool:
    """Whether the content of a value is known and no caller may feed another.

    Of an initializer that is a graph input too, only from IR version 4 on may the caller do that.
    """
    return constant.known and not (constant.overridable and model.ir_version >= OVERRIDABLE_SINCE)


def drop_unused(values: Iterable[ir.Value | None]) -> None:
    """Remove values that nothing uses, and then what was only needed to make them.

    Give the inputs of nodes that were removed. Graph inputs and outputs stay.
    """
    waiting = [value for value in values if value is not None]
    while waiting:
        value = waiting.pop()
        if value.uses() or value.is_graph_output():
            continue
        node = value.producer()
        if node is not None:
            unused = not any(o.uses() or o.is_graph_output() for o in node.outputs)
            if unused and node.graph is not None:
                waiting += [i for i in node.inputs if i is not None]
                node.graph.remove(node, safe=True)
        elif value.is_initializer() and not value.is_graph_input() and value.graph is not None:
            value.graph.initializers.pop(str(value.name))


def _settle_inputs(before: ir.Model, after: ir.Model) -> None:
    """Before IR version 4 every initializer had to be a graph input too: keep it so."""
    if after.ir_version >= OVERRIDABLE_SINCE:
        return
    stored = before.graph.initializers
    used = {name for name, value in stored.items() if value.uses() or value.is_graph_output()}
    for name, value in list(after.graph.initializers.items()):
        if name in used and not value.uses() and not value.is_graph_output():
            after.graph.initializers.pop(name)
            if value in after.graph.inputs:
                after.graph.inputs.remove(value)
    for value in after.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and not value.is_graph_input():
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            after.graph.inputs.append(value)


def _say_where(row: RewriteRow, path: Sequence[str]) -> RewriteRow:
    """Say of a changed node that has no value in the main graph what speaks for it."""
    if not row.changed or row.value or not path:
        return row
    place = "a subgraph" if len(path) > 1 or not path[0].startswith("function ") else "a function"
    where = f"inside {place}: compared by the model's outputs alone, if these inputs reach it"
    return dataclasses.replace(row, reason="; ".join(filter(None, (row.reason, where))))


def _with_numbers(row: RewriteRow, proof: ProofReport) -> RewriteRow:
    found = next((r for r in proof.rows if row.value and r.name == row.value), None)
    if found is None:
        return row
    return dataclasses.replace(row, error=found.difference, budget=found.budget)
