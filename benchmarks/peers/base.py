"""What every contender provides."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from benchmarks.cases import DTYPES, Case, Data
from benchmarks.measure import Statement


class Unsupported(Exception):
    """The library has no kernel for this case on this machine."""


class Contender(ABC):
    """One way to compute a case, in its best form, which ``legend`` states.

    Those of one ``family`` are forms of one library: the summary takes the fastest of them.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    legend: ClassVar[str]
    needs: ClassVar[str] = "numpy"  # the module without which it is left out
    modes: ClassVar[frozenset[str]] = frozenset({"train", "eval", "call"})
    dtypes: ClassVar[frozenset[str]] = frozenset(DTYPES)
    kernel: str = ""  # the name that the library gives to what it chose, once prepared
    own_statistics: ClassVar[bool] = False  # whether backward goes by those of its own forward
    computes: ClassVar[bool] = True  # False for the copy, whose output has no error to show

    def __init__(self, case: Case, data: Data) -> None:
        self.case = case
        self.data = data

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.needs) is not None

    @classmethod
    def takes(cls, case: Case) -> bool:
        """Whether it computes such a case."""
        return case.mode in cls.modes and case.dtype in cls.dtypes

    @abstractmethod
    def prepare(self) -> Statement:
        """Set up everything that a user sets up once; return the call that is timed.

        Raises Unsupported where the library turns out to have no kernel for the case.
        """

    @abstractmethod
    def output(self) -> np.ndarray:
        """Return y, or in backward dx, in the case's layout, after a call."""
