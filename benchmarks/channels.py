"""Arrays of any layout seen channel by channel, without a copy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

AT_ONCE = 8  # channels; bounds the wide temporaries on large arrays


def by_channel(array: np.ndarray, axis: int) -> np.ndarray:
    """View the array as (N, C, L)."""
    if axis == 1:
        return array.reshape(*array.shape[:2], -1)
    return np.moveaxis(array.reshape(array.shape[0], -1, array.shape[-1]), -1, 1)


def parts(channels: int) -> Iterator[slice]:
    """Split the channels into runs of a few."""
    return (slice(i, i + AT_ONCE) for i in range(0, channels, AT_ONCE))


def moments(x: np.ndarray, wide: type[np.floating]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and population variance of each channel of (N, C, L), in the wide type."""
    mean, var = np.empty((2, x.shape[1]), wide)
    for part in parts(x.shape[1]):
        values = x[:, part].astype(wide)
        mean[part] = values.mean(axis=(0, 2))
        var[part] = np.square(values - mean[part, np.newaxis]).mean(axis=(0, 2))
    return mean, var
