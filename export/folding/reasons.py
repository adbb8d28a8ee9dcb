"""Why a node stays: an exception that carries the reason, and the words that all reasons share."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["Refusal", "label", "listed"]


class Refusal(Exception):
    """A node cannot be folded this way; ``str`` of it says why, in words that a reader can check.

    Never leaves the package: ``fold`` turns it into the reason of a row.
    """


def label(node: ir.Node) -> str:
    """Name a node: its operator, and its name or else its first output's."""
    return f"{node.op_type} {(node.name or node.outputs[0].name)!r}"


def listed(nodes: list[ir.Node], most: int = 3) -> str:
    """Name some nodes, and count those beyond `most`."""
    names = [label(node) for node in nodes[:most]]
    more = len(nodes) - most
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
