"""What a check reports: a row for each thing that was compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from .results import Report
from .tolerance import Agreement

__all__ = ["CrosscheckReport", "CrosscheckRow", "make_row"]


@dataclasses.dataclass(frozen=True)
class CrosscheckRow:
    """One comparison.

    Attributes
    ----------
    kind : {"node", "output", "layer"}
        A BatchNormalization node, onnxruntime against cbn; an output of the model, onnxruntime's
        optimization off against on; or a result of the layer that was given, onnxruntime against
        the layer.
    name : str
        The node, output or result.
    shape : tuple of int, or None
        Of the node's input (of the first batch), or of the output.
    opset : int or None
        Nodes only, like `mode`.
    mode : {"eval", "training"} or None
    provider : str
        The execution provider of the session.
    max_abs_error : float or None
        None where nothing was compared; `remark` says why.
    max_ulp_error : float or None
        In units in the last place of the largest term of the node's formula, or of the largest
        value of the output.
    tolerance : float or None
        What `max_ulp_error` may be.
    ok : bool
        Whether it was compared and holds.
    remark : str
        What there is to say beside the numbers.
    """

    kind: str
    name: str
    shape: tuple[int, ...] | None
    opset: int | None
    mode: str | None
    provider: str
    max_abs_error: float | None
    max_ulp_error: float | None
    tolerance: float | None
    ok: bool
    remark: str = ""

    def cells(self) -> Sequence[str]:
        """The row as text, one string for each of the report's columns."""
        return (
            self.name,
            "x".join(map(str, self.shape)) if self.shape is not None else "-",
            "-" if self.opset is None else str(self.opset),
            self.mode or self.kind,
            self.provider.removesuffix("ExecutionProvider"),
            _number(self.max_abs_error, ".2e"),
            _number(self.max_ulp_error, ".3g"),
            _number(self.tolerance, ".3g"),
            ("pass" if self.ok else "FAIL") + (f": {self.remark}" if self.remark else ""),
        )


@dataclasses.dataclass(frozen=True)
class CrosscheckReport(Report):
    """The rows of a check: nodes, then outputs, then results of the layer if one was given.

    Attributes
    ----------
    rows : tuple of CrosscheckRow
    inputs : str
        What was run, in words: the file, or random inputs and their seed.
    notes : tuple of str
        What to know of them: how many values of which input are NaN or infinite.
    """

    inputs: str = ""
    notes: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]] = (
        "name",
        "shape",
        "opset",
        "mode",
        "provider",
        "max |error|",
        "max ULP",
        "tolerance",
        "result",
    )


def make_row(
    kind: str,
    name: str,
    shape: tuple[int, ...] | None,
    provider: str,
    agreement: Agreement | None,
    *,
    mode: str | None,
) -> CrosscheckRow:
    """Make a row from a comparison, or from None where there was none: such a row does not hold."""
    if agreement is None:
        return CrosscheckRow(kind, name, shape, None, mode, provider, None, None, None, False)
    return CrosscheckRow(
        kind,
        name,
        shape,
        None,
        mode,
        provider,
        agreement.max_abs_error,
        agreement.max_ulp_error,
        agreement.tolerance,
        agreement.ok,
    )


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
