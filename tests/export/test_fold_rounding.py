"""One rounding from float64, to nearest even, also where the library underneath rounds twice."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbn.export.folding.reasons import Refusal
from cbn.export.folding.rounding import round_once

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = {"float16": np.dtype(np.float16), "bfloat16": BFLOAT16, "float32": np.dtype(np.float32)}


def nearest(value: float, dtype: np.dtype) -> float:
    """By comparing the neighbours in exact fractions; the even one of two equally near."""
    guess = np.asarray(value).astype(dtype)
    bits = guess.view(f"u{dtype.itemsize}")
    around = [(bits + np.array(step).astype(bits.dtype)).view(dtype) for step in (-1, 0, 1)]
    finite = [c for c in around if np.isfinite(c.astype(float))]

    def distance(candidate: np.ndarray) -> tuple[Fraction, int]:
        apart = abs(Fraction(float(candidate.astype(float))) - Fraction(value))
        return apart, int(candidate.view(f"u{dtype.itemsize}")) & 1

    return float(min(finite, key=distance).astype(float))


@pytest.mark.parametrize("name", TYPES)
@given(st.floats(1e-3, 1e4), st.sampled_from([1, -1]))
def test_rounds_to_the_nearest(name: str, size: float, sign: int) -> None:
    value = sign * size
    found = round_once(np.array([value]), TYPES[name], "it")
    assert float(found[0]) == nearest(value, TYPES[name])


@pytest.mark.parametrize("beside", [2.0**-40, -(2.0**-40)])
def test_what_lies_beside_a_tie_does_not_go_to_the_even_side(beside: float) -> None:
    tie = 1 + 2.0**-8  # halfway between two bfloat16; float32 cannot tell beside from it
    found = float(round_once(np.array([tie + beside]), BFLOAT16, "it")[0])
    assert found == (1 + 2.0**-7 if beside > 0 else 1.0)


def test_too_large_is_refused() -> None:
    with pytest.raises(Refusal, match="folded, the weight would reach 7e\\+04, beyond float16's"):
        round_once(np.array([7e4, 1.0]), TYPES["float16"], "the weight")


def test_too_small_is_refused_for_all_but_not_for_one() -> None:
    small = np.array([1e-7, 1e-8])
    with pytest.raises(Refusal, match="at most 1e-07, below float16's smallest normal number"):
        round_once(small, TYPES["float16"], "the weight")
    assert round_once(np.array([1e-7, 1.0]), TYPES["float16"], "the weight")[1] == 1
    assert round_once(np.zeros(3), TYPES["float16"], "the weight").tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("first", "lost"),
    [
        ([1e-6, 1.3e-6], True),  # some of the digits
        ([2.0**-24, 2.0**-20], False),  # held exactly
        ([1e-6, 1.0], False),  # small beside a larger one of its own channel
        ([0.0, 0.0], False),
    ],
)
def test_a_channel_of_a_kernel_counts_by_itself(first: list[float], lost: bool) -> None:
    kernel = np.array([first, [1.0, 1.0]]).reshape(2, 1, 2)
    if lost:
        with pytest.raises(
            Refusal, match=r"at most 1\.3e-06 in channel 0, below float16's smallest"
        ):
            round_once(kernel, TYPES["float16"], "the weight")
    else:
        assert round_once(kernel, TYPES["float16"], "the weight")[1, 0, 0] == 1


def test_a_channel_of_float32_that_is_switched_off_may_be_lost() -> None:
    kernel = np.array([[1e-77, 1e-50], [1.0, 1.0]]).reshape(2, 1, 2)
    assert round_once(kernel, TYPES["float32"], "the weight")[0].tolist() == [[0, 0]]


def test_one_number_a_channel_may_be_small_as_a_bias_is() -> None:
    bias = np.array([1e-7, 1.0]).reshape(2, 1, 1)
    assert round_once(bias, TYPES["float16"], "the bias")[1] == 1
