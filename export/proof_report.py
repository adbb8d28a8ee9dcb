"""What a proof reports: a row for each value that was compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from .results import Report, counted, to_plain

__all__ = ["ProofReport", "ProofRow"]

_KINDS = {
    "output": "output",
    "intermediate": "intermediate value",
    "forced": "forced output",
}


@dataclasses.dataclass(frozen=True)
class ProofRow:
    """One output or intermediate value, before and after.

    Attributes
    ----------
    kind : {"output", "intermediate", "forced"}
        Forced: an output where a changed branch of an If is taken whatever its condition.
    name : str
        Of the value in the model before.
    shape : tuple of int, or None
        In the first batch.
    largest : float or None
        The largest absolute value of it in the float64 evaluation of the model before.
    difference : float or None
        The largest between the float64 evaluations before and after, in the channel where it is
        the largest part of what it may be; the number of elements that differ where it holds
        integers, booleans or text. None when there is no such evaluation.
    budget : float or None
        What `difference` may be in that channel: the effect that the rounding of weights has.
    error, error_before : float or None
        The largest of onnxruntime's results, with optimization off and on, against the reference,
        after and before.
    error_budget : float or None
        What `error` may be.
    ok : bool
    remark : str
        Why it does not hold, or what else there is to know.
    """

    kind: str
    name: str
    shape: tuple[int, ...] | None
    largest: float | None
    difference: float | None
    budget: float | None
    error: float | None
    error_before: float | None
    error_budget: float | None
    ok: bool
    remark: str = ""

    def cells(self) -> Sequence[str]:
        """One string a column."""
        numbers = (
            self.largest,
            self.difference,
            self.budget,
            self.error,
            self.error_before,
            self.error_budget,
        )
        return (
            self.name,
            self.kind,
            *("-" if number is None else f"{number:.2e}" for number in numbers),
            ("pass" if self.ok else "FAIL") + (f": {self.remark}" if self.remark else ""),
        )


@dataclasses.dataclass(frozen=True)
class ProofReport(Report):
    """A row per output, then per intermediate value; true when all hold.

    Attributes
    ----------
    rows : tuple of ProofRow
    inputs : str
        What the models were run on, in words.
    reference : str
        What they were measured against, in words.
    failure : str
        Why there could be no proof at all; empty otherwise.
    """

    inputs: str = ""
    reference: str = ""
    failure: str = ""

    columns: ClassVar[tuple[str, ...]] = (
        "value",
        "kind",
        "largest",
        "difference",
        "budget",
        "error",
        "error before",
        "error budget",
        "result",
    )

    @property
    def ok(self) -> bool:
        """Whether there is a proof and every row of it holds."""
        return not self.failure and bool(self.rows) and super().ok

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.failure:
            return f"not proved: {self.failure}"
        kinds = [
            (noun, [row for row in self.rows if row.kind == kind and row.largest is not None])
            for kind, noun in _KINDS.items()
        ]
        if self.ok:
            counts = " and ".join(counted(len(held), kind) for kind, held in kinds if held)
            return f"proved on {self.inputs}, measured against {self.reference}: {counts} as before"
        failed = next(row for row in self.rows if not row.ok)
        number = sum(not row.ok for row in self.rows)
        of = f"{number} of {len(self.rows)} values"
        return f"PROOF FAILED for {of}: {failed.name!r}: {failed.remark}"

    def __str__(self) -> str:
        return self.failure or super().__str__()

    def to_dict(self) -> dict[str, Any]:
        """The report for ``json.dumps``."""
        return {**super().to_dict(), "rows": to_plain(self.rows), "summary": self.summary}
