"""Images in a folder, brought to what a model takes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ...data import DataError
from ...inputs import Feeds, ModelInput
from .image_options import Channels, ImageOptions, Layout
from .tables import Rows, file_mark

__all__ = ["EXTENSIONS", "ImageOptions", "Images", "find_images"]

EXTENSIONS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

_LARGEST_POOL = 8
_ORIENTATION = 0x0112
_ON_SIDE = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height


def find_images(folder: Path, *, recursive: bool) -> list[Path]:
    """List the images of a folder by their extension, in the order of their paths."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in EXTENSIONS and path.is_file())


class Images:
    """Images as the samples of a model's only input: a `Table`. Of several frames the first.

    Raises
    ------
    DataError
        When the model takes no images, or the options do not fit it.
    ImportError
        When Pillow is not installed.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Sequence[ModelInput],
        options: ImageOptions | None = None,
    ) -> None:
        self._pillow = _import_pillow()
        self.options = options or ImageOptions()
        self._input = inputs[0]
        self._plan = _Plan.of(inputs, self.options)
        self.paths = find_images(folder, recursive=self.options.recursive)
        if not self.paths:
            raise DataError(f"{folder}: no image in it ({', '.join(sorted(EXTENSIONS))})")
        self.samples: int | None = len(self.paths)
        self.names: tuple[str, ...] | None = tuple(
            path.relative_to(folder).as_posix() for path in self.paths
        )
        self.breaks = () if self._plan.size else self._changes()
        size = self._plan.size or self._size(self.paths[0])
        self.row: Rows = {self._input.name: (self._input.dtype, self._plan.shape(size))}
        self.notes = () if options else (self._plan.note(),)
        self._pool: ThreadPoolExecutor | None = None

    def read(self, start: int, stop: int) -> Feeds:
        """Read a run of images, several at once."""
        if self._pool is None:
            workers = min(_LARGEST_POOL, os.cpu_count() or 1)
            self._pool = ThreadPoolExecutor(workers, "cbn-images")
        samples = list(self._pool.map(self._sample, self.paths[start:stop]))
        return {self._input.name: np.stack(samples)}

    def close(self) -> None:
        """End the threads that decode."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def fingerprint(self) -> str:
        """Path, size and time of each file, and the options."""
        return "\n".join([str(self.options), str(self._plan), *map(file_mark, self.paths)])

    def _changes(self) -> tuple[int, ...]:
        sizes = [self._size(path) for path in self.paths]
        return tuple(index for index in range(1, len(sizes)) if sizes[index] != sizes[index - 1])

    def _size(self, path: Path) -> tuple[int, int]:
        """Height and width, from the head of the file."""
        try:
            with self._pillow.Image.open(path) as image:
                turned = self.options.upright and image.getexif().get(_ORIENTATION, 1) in _ON_SIDE
                width, height = image.size
                return (width, height) if turned else (height, width)
        except Exception as error:  # Pillow raises many kinds on broken files
            raise DataError(f"{path}: cannot be read: {error}") from error

    def _sample(self, path: Path) -> np.ndarray:
        try:
            with self._pillow.Image.open(path) as image:
                upright = (
                    self._pillow.ImageOps.exif_transpose(image) if self.options.upright else image
                )
                return self._plan.to_sample(self._resized(self._converted(upright)))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except Exception as error:  # Pillow raises many kinds on broken files
            raise DataError(f"{path}: cannot be read: {error}") from error

    def _converted(self, image: Any) -> Any:
        """Convert to RGB or grey; to float grey where Pillow would clip to 8 bits."""
        if image.mode == "F":
            return image
        if image.mode.startswith("I"):
            return self._pillow.Image.fromarray(np.asarray(image, np.float32) / np.float32(257))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("L" if self._plan.channels == "L" else "RGB")

    def _resized(self, image: Any) -> Any:
        if self._plan.size is None:
            return image
        (height, width), (old_width, old_height) = self._plan.size, image.size
        resample = self._pillow.Image.Resampling[self.options.resample.upper()]
        if self.options.resize == "stretch":
            new = width, height
        elif self.options.shorter is None:
            ratio = max(height / old_height, width / old_width)
            new = max(width, round(old_width * ratio)), max(height, round(old_height * ratio))
        else:
            short = min(image.size)
            new = tuple(self.options.shorter * side // short for side in image.size)
        if new != image.size:
            image = image.resize(new, resample)
        left, top = round((new[0] - width) / 2), round((new[1] - height) / 2)
        if left < 0 or top < 0:
            raise DataError(
                f"resized to {new[1]} x {new[0]}, it is smaller than the size {height} x {width}"
            )
        return image.crop((left, top, left + width, top + height))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The options, with what the model decides filled in."""

    declared: ModelInput
    channels: Channels
    layout: Layout
    size: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, inputs: Sequence[ModelInput], options: ImageOptions) -> _Plan:
        declared = inputs[0]
        shape = declared.shape or (None,) * 4
        if len(inputs) != 1 or len(shape) != 4:
            listed = "; ".join(f"{given.name!r} {given}" for given in inputs)
            raise DataError(
                f"images are for a model with one input of 4 dimensions, this one takes {listed}"
            )
        origin = options.origin
        layout: Layout = options.layout or ("NHWC" if _last(shape) else "NCHW")
        channel, height, width = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
        wanted = shape[channel] if isinstance(shape[channel], int) else None
        channels: Channels = options.channels or ("L" if wanted == 1 else "RGB")
        number = 1 if channels == "L" else 3
        fixed = shape[height], shape[width]
        size = options.shape or _known(fixed)
        fits = size is None or all(
            not isinstance(dim, int) or dim == mine for dim, mine in zip(fixed, size, strict=True)
        )
        if wanted not in (None, number) or not fits:
            given = f"channels {channels}, layout {layout}, size {size or 'of each image'}"
            raise DataError(f"{origin}: the model takes {declared}, which is not {given}")
        if size is None and any(isinstance(dim, int) for dim in fixed):
            raise DataError(f"{origin}: the model takes {declared}: give a size")
        floats = declared.dtype.kind == "f" or declared.dtype == ml_dtypes.bfloat16
        mean, std = (_each(options, name, number) for name in ("mean", "std"))
        if not floats and declared.dtype.kind not in "iu":
            raise DataError(f"{origin}: the model takes {declared}, which images are not")
        scale = options.scale or (1 / 255 if floats else 1.0)
        return cls(declared, channels, layout, size, scale, mean, std)

    def note(self) -> str:
        """Say what is done where no options say it."""
        size = "of their own size" if self.size is None else f"stretched to {self.size}"
        return (
            f"no options for images were given, so they are {self.channels}, {size}, times "
            f"{self.scale:.6g}: give what the deployment does where that differs"
        )

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """The shape of one sample."""
        number = len(self.mean)
        return (number, *size) if self.layout == "NCHW" else (*size, number)

    def to_sample(self, image: Any) -> np.ndarray:
        """Turn an image of the right size into what goes in."""
        pixels = np.asarray(image, np.float32)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], len(self.mean), axis=2)
        elif self.channels == "BGR":
            pixels = pixels[..., ::-1]
        values = pixels * np.float32(self.scale)
        values -= np.asarray(self.mean, np.float32)
        values /= np.asarray(self.std, np.float32)
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        dtype = self.declared.dtype
        if dtype.kind in "iu":
            values = np.rint(values)
            limits = np.iinfo(dtype)
            if values.min() < limits.min or values.max() > limits.max:
                raise DataError(f"values from {values.min()} to {values.max()} do not fit {dtype}")
        return np.ascontiguousarray(values, dtype)


def _known(dims: Sequence[int | str | None]) -> tuple[int, int] | None:
    """Return height and width where both are numbers."""
    known = [dim for dim in dims if isinstance(dim, int)]
    return (known[0], known[1]) if len(known) == 2 else None


def _last(shape: Sequence[int | str | None]) -> bool:
    """Whether a shape says that the channels come last."""
    return shape[3] in (1, 3) and shape[1] not in (1, 3)


def _each(options: ImageOptions, name: str, number: int) -> tuple[float, ...]:
    numbers = np.atleast_1d(np.asarray(getattr(options, name), np.float64))
    if numbers.size not in (1, number):
        raise DataError(
            f"{options.origin}: {name} has {numbers.size} numbers for {number} channels"
        )
    return tuple(np.broadcast_to(numbers, number).tolist())


def _import_pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ModuleNotFoundError as error:
        raise ImportError(
            'reading images needs the package Pillow: pip install "cbn[images]"'
        ) from error
    return PIL
