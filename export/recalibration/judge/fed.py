"""A model whose statistics are inputs: one session that runs any number of candidates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...inputs import Feeds
from ...nodes import find_nodes
from ...sessions import Providers, make_session, run_session
from ...surgery import Names
from ..apply import apply_statistics, rounded
from ..measure.targets import Targets

__all__ = ["FedModel"]

Moments = tuple[np.ndarray, np.ndarray]


class FedModel:
    """The model of some targets, to be run under whatever statistics.

    Parameters
    ----------
    targets : Targets
    providers, num_threads
        As for ``make_session``.

    Raises
    ------
    ModelError
        When onnxruntime refuses the model.
    ProviderError
        When a provider that was asked for is not in use.
    """

    def __init__(
        self, targets: Targets, *, providers: Providers = "cpu", num_threads: int | None = None
    ) -> None:
        self._targets = {target.name: target for target in targets.targets}
        model = apply_statistics(targets, {t.name: (t.mean, t.var) for t in targets.targets})
        self._inputs = _as_inputs(model, targets)
        self._session = make_session(model, providers, num_threads=num_threads)

    def run(self, feeds: Feeds, statistics: Mapping[str, Moments]) -> dict[str, np.ndarray]:
        """Run one batch, under a mean and a variance of shape (C,) for each target by name.

        They are rounded as they would be in the file.
        """
        given = dict(feeds)
        for name, names in self._inputs.items():
            arrays = rounded(self._targets[name], *statistics[name])
            given.update(zip(names, arrays, strict=True))
        return run_session(self._session, given)


def _as_inputs(model: ir.Model, targets: Targets) -> dict[str, tuple[str, str]]:
    """Make the statistics of each target inputs of the model; returns their names."""
    names = Names(model)
    nodes = {norm.name: norm.node for norm in find_nodes(model)}
    result = {}
    for target in targets.targets:
        made = []
        for index, what in ((3, "mean"), (4, "var")):
            value = ir.Value(
                name=names.new(f"{target.name}/{what}"),
                type=ir.TensorType(ir.DataType.from_numpy(target.dtype)),
                shape=ir.Shape([target.channels]),
            )
            model.graph.inputs.append(value)
            for member in target.members:
                nodes[member].replace_input_with(index, value)
            made.append(str(value.name))
        result[target.name] = (made[0], made[1])
    return result
