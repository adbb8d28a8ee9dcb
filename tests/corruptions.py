"""Eight corruptions of the example digits, as image benchmarks have them; always the same bits.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (Gaussian blur is of their extra set), scaled to images of 8 x 8 from 0
to 1. Accuracy of ``examples/digits/digits.onnx`` on its 450 test images falls from 99.1 % to
between 49 and 86 %.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
SIDE = 8

Corruption = Callable[[np.ndarray], np.ndarray]


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The test set: images (450, 1, 8, 8) float32 from 0 to 1, and labels (450,) int64."""
    with np.load(DIGITS / "digits.npz") as arrays:
        return arrays["image"], arrays["label"]


def gaussian_noise(images: np.ndarray, deviation: float = 0.3) -> np.ndarray:
    return _image(images + np.random.default_rng(1).normal(0, deviation, images.shape))


def impulse_noise(images: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Some pixels become black or white."""
    generator = np.random.default_rng(2)
    hit = generator.uniform(size=images.shape) < share
    return _image(np.where(hit, generator.integers(0, 2, images.shape), images))


def gaussian_blur(images: np.ndarray, deviation: float = 0.75) -> np.ndarray:
    row = np.exp(-(np.arange(-2, 3) ** 2) / (2 * deviation**2))
    return _image(_filtered(images, np.outer(row, row)))


def motion_blur(images: np.ndarray, length: int = 3) -> np.ndarray:
    """The camera moves along the diagonal."""
    return _image(_filtered(images, np.eye(length)))


def fog(images: np.ndarray, thickness: float = 1.0) -> np.ndarray:
    """Add clouds: noise in patches of 8, 4, 2 and 1 pixels, the larger the stronger."""
    generator = np.random.default_rng(3)
    clouds = np.zeros(images.shape)
    for patches in (1, 2, 4, 8):
        noise = generator.uniform(size=(*images.shape[:2], patches, patches))
        size = SIDE // patches
        clouds += noise.repeat(size, axis=2).repeat(size, axis=3) / np.sqrt(patches)
    clouds -= clouds.min(axis=(2, 3), keepdims=True)
    clouds /= clouds.max(axis=(2, 3), keepdims=True)
    return _image((images + thickness * clouds) / (1 + thickness))


def brightness(images: np.ndarray, more: float = 0.4) -> np.ndarray:
    return _image(images + more)


def contrast(images: np.ndarray, factor: float = 0.3) -> np.ndarray:
    """Draw each image towards its mean."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return _image(mean + factor * (images - mean))


def pixelate(images: np.ndarray, size: int = 2) -> np.ndarray:
    """Squares of pixels become their mean."""
    side = SIDE // size
    small = images.reshape(-1, 1, side, size, side, size).mean(axis=(3, 5))
    return _image(small.repeat(size, axis=2).repeat(size, axis=3))


CORRUPTIONS: dict[str, Corruption] = {
    corruption.__name__: corruption
    for corruption in (
        gaussian_noise,
        impulse_noise,
        gaussian_blur,
        motion_blur,
        fog,
        brightness,
        contrast,
        pixelate,
    )
}


def _image(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 1).astype(np.float32)


def _filtered(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each image with a kernel of sum 1; the border is repeated outwards."""
    edge = len(kernel) // 2
    padded = np.pad(images, ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode="edge")
    result = np.zeros(images.shape)
    for (i, j), weight in np.ndenumerate(kernel / kernel.sum()):
        result += weight * padded[:, :, i : i + SIDE, j : j + SIDE]
    return result
