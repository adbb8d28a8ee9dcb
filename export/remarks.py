"""The one table of remarks on BatchNormalization nodes, and which of them apply to a node."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from . import opsets
from .constants import OVERRIDABLE_SINCE, Constant
from .nodes import BatchNormNode

__all__ = ["REMARKS", "Kind", "Remark", "Severity", "make_remark", "node_remarks"]

Severity = Literal["error", "warning", "note"]

_LARGEST_FLOAT16 = 65504.0
_DEAD_SCALE = 1e-6
_CUDNN_EPSILON = 1e-5  # CUDNN_BN_MIN_EPSILON, until cuDNN 7.5 made it 0
_ROUNDED = 1 - 1e-6  # 1e-5 as float32 is a little less than 1e-5


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a code stands for.

    Attributes
    ----------
    severity : {"error", "warning", "note"}
        An error: the node cannot compute what it should. A warning: it does not do the same
        everywhere, or hardly what was meant. A note: good to know.
    meaning : str
        In a line.
    advice : str
        What to do about it.
    """

    severity: Severity
    meaning: str
    advice: str


REMARKS: dict[str, Kind] = {
    "non-positive-variance": Kind(
        "error",
        "var + epsilon is 0 or less: the output is NaN or infinite",
        "repair running_var where it was trained or converted; a variance is never negative",
    ),
    "not-finite": Kind(
        "error",
        "NaN or infinity among the parameters",
        "export again from a checkpoint before the training diverged",
    ),
    "shape-mismatch": Kind(
        "error",
        "parameters that are not all of one shape [C], with C the channels of the input",
        "export again: the file was put together wrongly",
    ),
    "aliased-in-training": Kind(
        "error",
        "training mode with statistics that equal another parameter, of this node or another: "
        "onnxruntime keeps one copy and overwrites it as it runs (onnxruntime#29790)",
        "cbn freeze, or cbn lower to keep the batch's statistics",
    ),
    "training-mode": Kind(
        "warning",
        "normalizes with the batch's statistics; the CUDA provider refuses it from opset 14 on, "
        "TensorRT always, and outputs depend on how the data is batched",
        "cbn freeze for stored statistics, or cbn lower to keep the batch's; flipping the "
        "attribute by hand changes the output in silence",
    ),
    "hidden-state": Kind(
        "warning",
        "running statistics that are not outputs of the graph: onnxruntime may write them over the "
        "initializers, so that one run changes the next",
        "cbn freeze or cbn lower",
    ),
    "untouched-statistics": Kind(
        "warning",
        "mean 0 and var 1 throughout: as before any training",
        "check that the checkpoint was loaded before the export; else re-estimate the statistics",
    ),
    "spatial-0": Kind(
        "warning",
        "statistics per activation (spatial=0), which few runtimes support",
        "cbn lower",
    ),
    "old-opset": Kind(
        "warning",
        f"opset below {opsets.OLDEST_BUILT}: onnxruntime has no kernel for this version",
        "cbn lower, cbn freeze or cbn fold, which lift the model",
    ),
    "instance-norm": Kind(
        "warning",
        "an instance normalization in disguise: training mode over a batch of one, by its shape or "
        "by Reshapes that move the samples to the channels",
        "keep it as it is computed: cbn lower. Frozen statistics would change what it does",
    ),
    "beyond-float16": Kind(
        "note",
        "numbers beyond 65504 among the parameters: infinite once they are converted to float16",
        "keep this node in float32 when converting, or fold it",
    ),
    "small-epsilon": Kind(
        "note",
        "epsilon below 1e-5, the least that cuDNN before version 7.5 takes: onnxruntime raises it",
        "compare outputs on CUDA with those on the CPU: cbn check --provider cuda",
    ),
    "dead-channels": Kind(
        "note",
        "channels with a scale of nearly 0: their output is the bias, whatever comes in",
        "prune them, in this node and the operators around it",
    ),
    "other-momentum": Kind(
        "note",
        "a momentum below 0.5: ONNX's weighs the old value (0.9 by default), so this looks like "
        "torch's, which weighs the new one",
        "harmless in eval mode; before training on, set it to one minus itself",
    ),
    "shared-statistics": Kind(
        "note",
        "mean or var is also the mean or var of another node",
        "nothing in eval mode; a rewrite of one of them needs a copy",
    ),
    "set-by-caller": Kind(
        "note",
        "the caller of the function sets some attributes of this node",
        "inline the functions to see one node for each call",
    ),
    "not-constant": Kind(
        "note",
        "some parameters are not fixed by the model, so not judged here",
        "store them as initializers if they never change",
    ),
    "overridable": Kind(
        "note",
        "parameters are graph inputs too: the caller may feed others, and runtimes cannot fold "
        "them",
        "take them off the list of inputs: cbn fold --fix-inputs",
    ),
    "decomposed": Kind(
        "note",
        "these operators together compute a batch norm, so it is not seen as one",
        "export with the node kept (torch.onnx.export with optimize=False or dynamo=False), where "
        "it is to be inspected or folded",
    ),
    "no-batch-norm": Kind(
        "note",
        "no BatchNormalization node: probably folded by the exporter",
        "to keep them, torch.onnx.export with optimize=False, or with dynamo=False and "
        "training=torch.onnx.TrainingMode.PRESERVE",
    ),
}


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something to know about a node.

    Attributes
    ----------
    code : str
        A stable name for programs, such as ``"training-mode"``.
    severity : {"error", "warning", "note"}
    text : str
        What it means, in a line.
    advice : str
        What to do about it.
    detail : str
        Which channels, which nodes; often empty.
    """

    code: str
    severity: Severity
    text: str
    advice: str
    detail: str = ""

    @property
    def fault(self) -> bool:
        """Whether the node cannot compute what it should."""
        return self.severity == "error"


def make_remark(code: str, detail: str = "") -> Remark:
    """Make a remark of a code in ``REMARKS``."""
    kind = REMARKS[code]
    return Remark(code, kind.severity, kind.meaning, kind.advice, detail)


def node_remarks(
    nodes: Sequence[BatchNormNode], ir_version: int = OVERRIDABLE_SINCE
) -> list[tuple[Remark, ...]]:
    """Say what is to be known of each of the nodes of one model, in their order."""
    sharing = collections.Counter(
        id(constant.value) for node in nodes for constant in (node.mean, node.var) if constant.known
    )
    contents = collections.Counter(
        key
        for node in nodes
        for constant in node.parameters.values()
        if (key := _content(constant)) is not None
    )
    return [
        (
            *_on_values(node),
            *_on_mode(node, contents),
            *_on_form(node),
            *_on_sources(node, sharing, ir_version),
        )
        for node in nodes
    ]


def _on_values(node: BatchNormNode) -> Iterator[Remark]:
    arrays = {name: c.array for name, c in node.parameters.items() if c.array is not None}
    if not _shapes_fit(node, [array.shape for array in arrays.values()]):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        yield make_remark("shape-mismatch", shapes)
    numbers = {name: array.astype(np.float64) for name, array in arrays.items()}
    broken = [name for name, array in numbers.items() if not np.isfinite(array).all()]
    if broken:
        yield make_remark("not-finite", f"in {', '.join(broken)}")
    large = [n for n, a in numbers.items() if (np.abs(_finite(a)) > _LARGEST_FLOAT16).any()]
    if large:
        yield make_remark("beyond-float16", f"in {', '.join(large)}")
    if "scale" in numbers and (dead := np.abs(numbers["scale"]) < _DEAD_SCALE).any():
        yield make_remark("dead-channels", _channels(dead))
    # In training mode the stored statistics do not enter the output.
    if node.mode == "training":
        return
    if (bad := node.bad_channels).any():
        least = float(np.nanmin(numbers["var"]))
        yield make_remark("non-positive-variance", f"{_channels(bad)}, the least is {least:.3g}")
    if node.untouched:
        yield make_remark("untouched-statistics")


def _on_mode(node: BatchNormNode, contents: collections.Counter[Hashable]) -> Iterator[Remark]:
    if node.mode == "eval":
        return
    yield make_remark("training-mode")
    if _hidden_state(node):
        keys = [_content(constant) for constant in (node.mean, node.var)]
        aliased = any(key is not None and contents[key] > 1 for key in keys)
        yield make_remark("aliased-in-training" if aliased else "hidden-state")
    if _is_instance_norm(node):
        yield make_remark("instance-norm")


def _on_form(node: BatchNormNode) -> Iterator[Remark]:
    if not node.spatial:
        yield make_remark("spatial-0")
    if node.opset < opsets.OLDEST_BUILT:
        yield make_remark("old-opset")
    if node.eps < _CUDNN_EPSILON * _ROUNDED:
        yield make_remark("small-epsilon", f"it is {node.eps:.3g}")
    if 0 < node.momentum < 0.5:
        yield make_remark("other-momentum", f"it is {node.momentum:.3g}")
    if node.by_reference:
        yield make_remark("set-by-caller", ", ".join(node.by_reference))


def _on_sources(
    node: BatchNormNode, sharing: collections.Counter[int], ir_version: int
) -> Iterator[Remark]:
    constants = node.parameters
    unknown = [name for name, constant in constants.items() if not constant.known]
    if unknown:
        yield make_remark("not-constant", ", ".join(unknown))
    inputs = any(constant.overridable for constant in constants.values())
    if inputs and ir_version >= OVERRIDABLE_SINCE:
        yield make_remark("overridable")
    if any(sharing[id(constant.value)] > 1 for constant in (node.mean, node.var)):
        yield make_remark("shared-statistics")


def _shapes_fit(node: BatchNormNode, shapes: Sequence[tuple[int, ...]]) -> bool:
    if len(set(shapes)) > 1:
        return False
    if not shapes or not node.spatial:
        return True
    known = node.input_shape is not None and len(node.input_shape) > 1
    channels = node.input_shape[1] if known and node.input_shape is not None else None
    return len(shapes[0]) == 1 and (not isinstance(channels, int) or shapes[0][0] == channels)


def _hidden_state(node: BatchNormNode) -> bool:
    """Whether running statistics go nowhere that keeps onnxruntime from the initializers."""
    return node.version.since >= 9 and any(
        not output.is_graph_output() for output in node.node.outputs[1:3]
    )


def _is_instance_norm(node: BatchNormNode) -> bool:
    if node.input_shape is not None and node.input_shape[:1] == (1,):
        return True
    x = node.node.inputs[0]
    producer = None if x is None else x.producer()
    return producer is not None and producer.op_type == "Reshape" and _only_reshapes(node.node)


def _only_reshapes(node: ir.Node) -> bool:
    uses = node.outputs[0].uses()
    return bool(uses) and all(use.node.op_type == "Reshape" for use in uses)


def _content(constant: Constant) -> Hashable:
    """What two parameters that onnxruntime keeps once have in common."""
    if constant.array is None or constant.array.ndim != 1:
        return None
    return constant.array.dtype.str, constant.array.tobytes()


def _finite(array: np.ndarray) -> np.ndarray:
    return np.asarray(array[np.isfinite(array)])


def _channels(chosen: np.ndarray) -> str:
    """Name the first of the channels, and count them."""
    indices: Iterable[int] = np.flatnonzero(chosen.ravel())
    first = ", ".join(str(index) for index in list(indices)[:4])
    count = int(chosen.sum())
    more = ", ..." if count > 4 else ""
    plural = "" if count == 1 else "s"
    return f"{count} of {chosen.size} channels (channel{plural} {first}{more})"
