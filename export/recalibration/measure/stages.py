"""Cut a model at its batch norms into stages, each of which needs only those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...files import ModelError
from ...nodes import BatchNormNode, find_nodes
from ...rewrite import drop_unused
from ..apply import apply_statistics
from .instrument import lower_others, seal
from .normalized import Normalized
from .targets import Target, Targets

__all__ = ["Moments", "Plan", "Stage", "plan_stages", "reads_of"]

Moments = tuple[np.ndarray, np.ndarray]
"""Mean and variance, float64 of shape (C,)."""

_GENERATORS = {"RandomNormal", "RandomUniform"}  # have no inputs, and are no constants


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A part of the model that runs over all data before the next one starts.

    Attributes
    ----------
    normalized : tuple of Normalized
        Batch norms measured before: they are computed first, by cbn.
    nodes : tuple of onnx_ir.Node
        The others, in order.
    inputs : tuple of str
        Values that the nodes read and do not make.
    outputs : tuple of str
        Values made by the nodes that are measured, or read by a later stage.
    measured : dict of str to str
        Value that is the input of a batch norm, by that node's name.
    kept : tuple of str
        Values, wherever made, that a later stage reads.
    """

    normalized: tuple[Normalized, ...]
    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    measured: dict[str, str]
    kept: tuple[str, ...]

    @property
    def wanted(self) -> set[str]:
        """Values from before this stage that it reads or measures."""
        made = {*self.outputs, *(norm.y for norm in self.normalized)}
        reads = {*self.inputs, *self.measured.values(), *(norm.x for norm in self.normalized)}
        return reads - made


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All stages of a model, and the model that they are parts of.

    Attributes
    ----------
    model : onnx_ir.Model
        A copy in which every target is in eval mode, with mean and variance of its own.
    stages : tuple of Stage
    statistics : dict of str to (str, str)
        The initializers that hold the mean and the variance of each target, for the nodes that
        are not computed by cbn.
    targets : tuple of Target
    """

    model: ir.Model
    stages: tuple[Stage, ...]
    statistics: dict[str, tuple[str, str]]
    targets: tuple[Target, ...]


def plan_stages(targets: Targets) -> Plan:
    """Cut a model so that each target is measured under corrected targets alone.

    A node's stage is the number of targets on the longest path before it: all targets of one
    number are measured together, and so are the uses of a layer that have one. What comes after
    the last target is left out. What no input of the model has a part in is computed in each
    stage that needs it.

    Raises
    ------
    ModelError
        When a node in training mode, which is not asked for, cannot be spelled out, or when
        nothing of the data reaches a target.
    """
    blank = {t.name: (np.zeros(t.channels), np.ones(t.channels)) for t in targets.targets}
    model = apply_statistics(targets, blank)
    lower_others(model, targets)
    seal(model)
    graph = model.graph
    owner = {member: target.name for target in targets.targets for member in target.members}
    norms = {norm.name: norm for norm in find_nodes(model) if norm.name in owner}
    measured = {
        name: norm.node.inputs[0] for name, norm in norms.items() if norm.node.inputs[0] is not None
    }
    statistics = {
        name: (str(norm.node.inputs[3].name), str(norm.node.inputs[4].name))
        for name, norm in norms.items()
        if norm.node.inputs[3] is not None and norm.node.inputs[4] is not None
    }
    before = list(graph.outputs)
    graph.outputs.clear()
    graph.outputs.extend({id(x): x for x in measured.values()}.values())
    drop_unused(before)
    drop_unused(value for node in list(graph) for value in node.outputs)
    # Those that nothing measured depends on are gone from the graph, and only measured.
    norms = {name: norm for name, norm in norms.items() if norm.node.graph is graph}
    order = _Order(graph, norms, owner, measured)
    return Plan(
        model,
        tuple(order.stages()),
        {target.name: statistics[target.name] for target in targets.targets},
        targets.targets,
    )


class _Order:
    """Which stage each node runs in."""

    def __init__(
        self,
        graph: ir.Graph,
        norms: Mapping[str, BatchNormNode],
        owner: Mapping[str, str],
        measured: Mapping[str, ir.Value],
    ) -> None:
        graph.sort()
        self._graph = graph
        self._norms = {id(norm.node): norm for norm in norms.values()}
        self._owner = owner
        self._measured = measured
        self._reads = {id(node): reads_of(node, graph) for node in graph}
        self._made: dict[int, int] = {id(value): 0 for value in graph.inputs}
        self._stage: dict[int, int] = {}
        for node in graph:
            self._place(node)
        for name, x in measured.items():
            if id(x) not in self._made:
                raise ModelError(f"nothing of the data reaches BatchNormalization {name!r}")
        self._delay()
        self._last: dict[str, int] = {}
        for node in graph:
            for value in self._reads[id(node)]:
                if id(node) in self._stage and id(value) in self._made:
                    name = str(value.name)
                    self._last[name] = max(self._last.get(name, 0), self._stage[id(node)])

    def _place(self, node: ir.Node) -> None:
        earlier = [self._made[id(v)] for v in self._reads[id(node)] if id(v) in self._made]
        if not earlier and node.op_type not in _GENERATORS:
            return  # a constant
        stage = max(earlier, default=0) + (id(node) in self._norms)
        self._stage[id(node)] = stage
        self._made |= {id(value): stage for value in node.outputs}

    def _delay(self) -> None:
        """Run a target only when its output is read: what is kept meanwhile is its input, one."""
        readers: dict[int, list[int]] = {}
        for node in self._graph:
            for value in self._reads[id(node)]:
                if id(node) in self._stage:
                    # A target's input is measured in the stage before.
                    needed = self._stage[id(node)] - (id(node) in self._norms)
                    readers.setdefault(id(value), []).append(needed)
        for norm in self._norms.values():
            output = id(norm.node.outputs[0])
            if readers.get(output):
                self._stage[id(norm.node)] = self._made[output] = min(readers[output])

    def stages(self) -> Iterator[Stage]:
        """The stages, in order."""
        for index in range(1 + max(self._made[id(x)] for x in self._measured.values())):
            yield self._stage_of(index)

    def _stage_of(self, index: int) -> Stage:
        own = {id(node): node for node in self._graph if self._stage.get(id(node)) == index}
        normalized = []
        for norm in [self._norms[key] for key in own if key in self._norms]:
            if norm.scale.known and norm.bias.known:
                relu = self._relu_after(norm.node, own)
                normalized.append(self._normalized(norm, relu, own))
                del own[id(norm.node)]
                if relu is not None:
                    del own[id(relu)]
        nodes = list(own.values())
        made = {str(v.name): None for node in nodes for v in node.outputs if v.name}
        read = {str(v.name): None for n in nodes for v in self._reads[id(n)] if id(v) in self._made}
        measured = {
            name: str(x.name) for name, x in self._measured.items() if self._made[id(x)] == index
        }
        values = (*self._graph.inputs, *(v for node in self._graph for v in node.outputs))
        available = [str(v.name) for v in values if self._made.get(id(v), index + 1) <= index]
        kept = tuple(name for name in available if self._last.get(name, 0) > index)
        told = {*measured.values(), *kept}
        return Stage(
            normalized=tuple(normalized),
            nodes=(*self._constants(nodes), *nodes),
            inputs=tuple(name for name in read if name not in made),
            outputs=tuple(name for name in made if name in told),
            measured=measured,
            kept=kept,
        )

    def _relu_after(self, node: ir.Node, own: Mapping[int, ir.Node]) -> ir.Node | None:
        """The Relu of this stage that alone reads what a node makes, if it is one."""
        y = node.outputs[0]
        users = [use.node for use in y.uses()]
        if len(users) != 1 or y.is_graph_output() or id(users[0]) not in own:
            return None
        return users[0] if users[0].op_type == "Relu" and users[0].domain == "" else None

    def _normalized(
        self, norm: BatchNormNode, relu: ir.Node | None, own: Mapping[int, ir.Node]
    ) -> Normalized:
        x = self._measured[norm.name]
        readers = [node for node in own.values() if any(v is x for v in self._reads[id(node)])]
        last = self._last[str(x.name)] == self._stage[id(norm.node)]
        return Normalized(
            target=self._owner[norm.name],
            x=str(x.name),
            y=str((norm.node if relu is None else relu).outputs[0].name),
            weight=np.asarray(norm.scale.array, np.float64),
            bias=np.asarray(norm.bias.array, np.float64),
            eps=norm.eps,
            relu=relu is not None,
            in_place=last and len(readers) == 1,
        )

    def _constants(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """The nodes without a stage of their own that these need, in order."""
        needed: set[int] = set()
        waiting = list(nodes)
        while waiting:
            for value in self._reads[id(waiting.pop())]:
                node = value.producer()
                if node is not None and id(node) not in self._stage and id(node) not in needed:
                    needed.add(id(node))
                    waiting.append(node)
        return [node for node in self._graph if id(node) in needed]


def reads_of(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """List the values of a graph that a node of it reads, also from within its subgraphs."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        bodies: Sequence[ir.Graph] = ()
        if attribute.type is ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type is ir.AttributeType.GRAPHS:
            bodies = attribute.as_graphs()
        for body in bodies:
            inner = [v for n in ir.traversal.RecursiveGraphIterator(body) for v in n.inputs]
            found += [v for v in (*inner, *body.outputs) if v is not None and v.graph is graph]
    return list({id(value): value for value in found}.values())
