"""What every contender provides."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from benchmarks.cases import Case, Data


class Contender(ABC):
    """One way to compute a case, in its best form, which ``legend`` states."""

    name: ClassVar[str]
    legend: ClassVar[str]
    needs: ClassVar[str] = "numpy"  # the module without which it is left out
    modes: ClassVar[frozenset[str]] = frozenset({"train", "eval", "call"})
    computes: ClassVar[bool] = True  # False for the copy, whose output has no error to show

    def __init__(self, case: Case, data: Data) -> None:
        self.case = case
        self.data = data

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.needs) is not None

    @abstractmethod
    def prepare(self) -> Callable[[], object]:
        """Set up everything that a user sets up once; return the call that is timed."""

    @abstractmethod
    def output(self) -> np.ndarray:
        """Return the result in the case's layout, after a call."""
