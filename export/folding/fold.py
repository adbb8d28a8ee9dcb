"""Fold the batch norms of a model into what stands beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from ..data import DataLike
from ..files import ModelLike
from ..nodes import BatchNormNode, find_nodes
from ..prepare import prepare
from ..rewrite import KEPT, Changes, RewriteResult, RewriteRow, run_rewrite
from ..sessions import Providers
from .copies import copy_nodes
from .neighbours import take_in
from .plan import Plan
from .reasons import Refusal
from .rounding import round_once
from .shapes import Shapes
from .site import Site, open_site
from .walk import Route, down, up
from .weights import Weights

__all__ = ["fold"]


def fold(
    model: ModelLike,
    *,
    nodes: Iterable[str] | None = None,
    clone: bool = False,
    fix_inputs: bool = False,
    into_elementwise: bool = False,
    data: DataLike | None = None,
    seed: int = 0,
    providers: Providers = "cpu",
    num_threads: int | None = None,
    prove: bool = True,
) -> RewriteResult:
    """Fold batch norms in eval mode into the linear operators before or behind them.

    Into Conv, ConvTranspose, Gemm, MatMul and other batch norms, on either side, also past
    operators that move values (Transpose, Reshape, Flatten, ...), pooling, reductions and Pad where
    these commute. Constant Mul, Add, Sub and Div beside a batch norm go into it first. Arithmetic
    is float64, with one rounding back to the type of each weight.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    nodes : iterable of str, optional
        The batch norms to fold, as ``find_nodes`` names them; all when None. One that is named and
        cannot be folded makes the result false.
    clone : bool, default: False
        Whether to copy what others need too: a Conv whose result has other readers (it then runs
        twice), a weight that other nodes share (the file grows).
    fix_inputs : bool, default: False
        Whether parameters that are graph inputs with a default count as constants; folded ones are
        no inputs any more. Below IR version 4 they always count: there every initializer had to
        be a graph input, and onnxruntime lets no one feed them.
    into_elementwise : bool, default: False
        Replace a batch norm that took in a Mul and an Add, and can go nowhere, by a new Mul and
        Add: no batch norm is left, at the price of one more node.
    data, seed, providers, num_threads
        For the proof: see ``cbn.export.proof.prove``.
    prove : bool, default: True
        Whether to run the model before and after, and compare.

    Returns
    -------
    RewriteResult
        A row per node: what it was folded into, or why it stays.

    Raises
    ------
    ModelError
        When the model cannot be read or run, has no BatchNormalization, none of a name in `nodes`,
        or is to be proved and cannot be lifted.

    Notes
    -----
    ``y = (x - mean) * a + bias`` with ``a = scale / sqrt(var + epsilon)``, of ONNX
    BatchNormalization (opset 1, 6, 7, 9, 14, 15). Names of graph outputs stay as they are. A model
    of an opset below 7, which no onnxruntime runs, is lifted to 7 by onnx's version converter if it
    is to be proved, and else folded as it is.
    """
    names = None if nodes is None else frozenset(nodes)
    prepared = prepare(model, names, inline=False, runnable=prove)

    def rewrite(copy: ir.Model) -> Changes:
        done = _Folding(copy, clone, fix_inputs, into_elementwise).run(names)
        return replace(done, notes=prepared.notes)

    return run_rewrite(
        prepared.model,
        rewrite,
        data=data,
        seed=seed,
        providers=providers,
        num_threads=num_threads,
        prove_it=prove,
    )


class _Folding:
    """One run over a model, which is changed in place."""

    def __init__(
        self, model: ir.Model, clone: bool, fix_inputs: bool, into_elementwise: bool
    ) -> None:
        self._model = model
        self._clone = clone
        self._into_elementwise = into_elementwise
        self._weights = Weights(model, fix_inputs=fix_inputs)
        self._shapes = Shapes(model)
        self._sites: dict[ir.Node, Site] = {}
        self._rows: dict[str, RewriteRow] = {}
        self._touched: set[str] = set()
        self._moved: set[str] = set()

    def run(self, wanted: Collection[str] | None) -> Changes:
        found = find_nodes(self._model)
        names = [node.name for node in found]
        for node in found:
            if wanted is not None and node.name not in wanted:
                self._keep(node, "not asked for", ok=True)
                continue
            try:
                shape = self._shapes.of(node.node.inputs[0])
                self._sites[node.node] = open_site(node, self._weights, shape)
            except Refusal as refusal:
                self._keep(node, str(refusal), ok=wanted is None)
        with np.errstate(all="ignore"):  # what is not finite in the end is refused
            self._fold_all(must=wanted is not None)
        rows = [self._rows[name] for name in names]
        rows = [replace(row, value="") if row.value in self._moved else row for row in rows]
        return Changes(rows, {name: name for name in sorted(self._touched - self._moved)})

    def _fold_all(self, must: bool) -> None:
        for site in self._sites.values():
            take_in(site, self._plan(site, clone=False))
        reasons: dict[ir.Node, str] = {}
        progress = True
        while progress:  # what one fold moves may be what stopped another
            progress = False
            for site in list(self._sites.values()):
                reason = self._fold(site)
                if reason is None:
                    progress = True
                else:
                    reasons[site.node] = reason
        for site in self._sites.values():
            self._leave(site, reasons[site.node], ok=not must)

    def _plan(self, site: Site, *, clone: bool) -> Plan:
        return Plan(
            self._weights,
            self._shapes.of,
            opset=site.source.opset,
            dtype=site.dtype,
            clone=clone,
        )

    def _fold(self, site: Site) -> str | None:
        """Fold one batch norm; the reason when it cannot be."""
        reasons: dict[str, str] = {}
        for clone in (False, True) if self._clone else (False,):
            for side, find in (("before", up), ("behind", down)):
                plan = self._plan(site, clone=clone)
                try:
                    route = find(site, self._sites, plan)
                except Refusal as refusal:
                    reasons[side] = str(refusal)
                    continue
                self._apply(site, route, plan, upwards=find is up)
                return None
        return "; ".join(f"{side}: {reason}" for side, reason in reasons.items())

    def _apply(self, site: Site, route: Route, plan: Plan, *, upwards: bool) -> None:
        node, y = site.node, site.y
        value = self._watch(site, [y] if upwards else [t.outputs[0] for t in route.targets])
        self._moved.update((*route.moved, *plan.moved))
        action = f"folded into {route}"  # as things are named in the model before
        copies = copy_nodes(route.copies, route.reader, self._weights.names)
        plan.carry_out(copies)
        x, parameters = site.x, list(node.inputs[1:])
        y.replace_all_uses_with(x, replace_graph_outputs=True)
        assert node.graph is not None, "a node of a model is in a graph"
        node.graph.remove(node, safe=True)
        if upwards:
            x.name, y.name = y.name, x.name
            x.shape = y.shape if y.shape is not None else x.shape
            x.type = y.type if y.type is not None else x.type
        self._weights.discard(parameters)
        del self._sites[node]
        notes = [f"with {', '.join(site.absorbed)}"] if site.absorbed else []
        self._rows[site.source.name] = RewriteRow(
            site.source.name,
            action,
            reason="; ".join([*notes, *plan.notes]),
            value=value,
        )

    def _leave(self, site: Site, reason: str, ok: bool) -> None:
        if site.norm is not site.original:
            value = self._watch(site, [site.y])
            absorbed = ", ".join(site.absorbed)
            if self._into_elementwise and len(site.absorbed) > 1 and self._split(site):
                action, ok, reason = f"folded into Mul and Add, with {absorbed}", True, ""
            else:
                site.write(self._weights)
                action = f"merged with {absorbed}"
            self._rows[site.source.name] = RewriteRow(
                site.source.name, action, ok=ok, reason=reason, value=value
            )
        else:
            self._keep(site.source, reason, ok)

    def _split(self, site: Site) -> bool:
        """Put a Mul and an Add in place of a batch norm, if their type can hold the constants."""
        node, y, names = site.node, site.y, self._weights.names
        graph, base = node.graph, node.name or y.name
        assert graph is not None, "a node of a model is in a graph"
        old = site.source.opset < 7  # which aligns by an attribute
        shape = (-1,) if old else (-1, *[1] * (site.rank - 2))
        attributes = {"broadcast": 1, "axis": 1} if old else {}
        constants = {"Mul": site.norm.scale.reshape(shape), "Add": site.norm.shift.reshape(shape)}
        try:
            stored = {op: round_once(a, site.dtype, op) for op, a in constants.items()}
        except Refusal:
            return False
        x: ir.Value = site.x
        for op, exact in constants.items():
            new = ir.node(op, [x, None], attributes, name=names.new(f"{base}/{op}"))
            x = new.outputs[0]
            x.name, x.shape, x.type = names.new(f"{new.name}_0"), y.shape, y.type
            graph.insert_before(node, new)
            self._weights.put(new, 1, stored[op], partial(np.array, exact), "constant")
        parameters = list(node.inputs[1:])
        y.replace_all_uses_with(x, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        x.name, y.name = y.name, x.name
        self._weights.discard(parameters)
        return True

    def _watch(self, site: Site, values: Sequence[ir.Value]) -> str:
        """Note values of the main graph that must not move; returns the first."""
        if site.source.path:
            return ""
        names = [str(value.name) for value in values]
        self._touched.update(names)
        return names[0]

    def _keep(self, node: BatchNormNode, reason: str, ok: bool) -> None:
        self._rows[node.name] = RewriteRow(node.name, KEPT, ok=ok, reason=reason)
