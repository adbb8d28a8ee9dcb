"""The two examples that are worked by hand in the documentation."""

from __future__ import annotations

import numpy as np
import pytest

import cbn

X = [[[7, 4, 6], [1, 2, 3]], [[3, 4, 2], [2, 4, 6]], [[9, 0, 7], [3, 8, 5]]]
NORMALIZED = [
    [[0.8750, -0.2500, 0.5000], [-1.3250, -0.8480, -0.3710]],
    [[-0.6250, -0.2500, -1.0000], [-0.8480, 0.1060, 1.0600]],
    [[1.6250, -1.7500, 0.8750], [-0.3710, 2.0140, 0.5830]],
]
PIXELS = [
    [97, 163, 130, 26, 83, 183, 165, 108, 242],
    [110, 93, 115, 237, 168, 120, 149, 115, 48],
]
NORMALIZED_PIXELS = [
    [-0.6115, 0.5873, -0.0121, -1.9012, -0.8658, 0.9506, 0.6236, -0.4117, 2.0223],
    [-0.3754, -0.6842, -0.2846, 1.9315, 0.6781, -0.1938, 0.3330, -0.2846, -1.5016],
]
TYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


@TYPES
def test_sequences_to_four_decimals(dtype):
    y = cbn.BatchNorm1d(2, affine=False, dtype=dtype)(np.array(X, dtype))
    np.testing.assert_array_equal(np.round(y.astype(float), 4), NORMALIZED)


def test_mean_and_biased_deviation_of_the_first_channel():
    stats = cbn.batch_stats(np.array(X, float))
    assert round(stats.mean[0], 4) == 4.6667
    assert round(stats.var[0] ** 0.5, 4) == 2.6667


def image(dtype: str) -> np.ndarray:
    """Two images of two channels, 3x3; the second channel is the first, halved."""
    first = np.array(PIXELS, dtype).reshape(2, 1, 3, 3)
    return np.concatenate([first, first / 2], axis=1)


@TYPES
def test_an_image_to_four_decimals(dtype):
    y = cbn.BatchNorm2d(2, dtype=dtype)(image(dtype))
    np.testing.assert_array_equal(
        np.round(y[:, 0].reshape(2, 9).astype(float), 4), NORMALIZED_PIXELS
    )


def test_mean_and_unbiased_deviation_of_the_image():
    stats = cbn.batch_stats(image("float64"))
    assert round(stats.mean[0], 4) == 130.6667
    assert round(stats.unbiased_var[0] ** 0.5, 4) == 56.6486
