"""How an image becomes a sample: options, from Python or a TOML file."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ...data import DataError

__all__ = ["Channels", "ImageOptions", "Layout", "Resample", "Resize"]

Resize = Literal["stretch", "crop"]
Channels = Literal["RGB", "BGR", "L"]
Layout = Literal["NCHW", "NHWC"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How an image becomes a sample: the steps of the deployment, in this order.

    Decoded and turned upright, converted to `channels`, resized, multiplied by `scale`, less
    `mean`, divided by `std`, laid out, and converted to the type of the input.

    Parameters
    ----------
    size : int or (int, int), optional
        Height and width. By default those of the model where they are fixed, else those that
        each image has.
    resize : {"stretch", "crop"}, default: "stretch"
        Stretch to `size`, or keep the proportions: the shorter side to `shorter`, then the centre
        (as torchvision's Resize and CenterCrop do).
    shorter : int, optional
        For "crop"; by default as small as covers `size`.
    resample : {"nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}, default: "bilinear"
        Pillow's filter, which looks at all pixels when it makes an image smaller.
    channels : {"RGB", "BGR", "L"}, optional
        By default RGB, or L (grey) for a model that takes one channel.
    scale : float, optional
        By default 1/255, so that floats go from 0 to 1; 1 for a model that takes integers. Grey
        images of 16 bits are brought to 0 to 255, unrounded, before.
    mean, std : float or sequence of float, optional
        One number, or one for each channel, in the order in which the model takes them.
    layout : {"NCHW", "NHWC"}, optional
        By default what the model's shape shows, else NCHW.
    recursive : bool, default: True
        Take images of folders within the folder too.
    upright : bool, default: True
        Turn photographs as their EXIF data say; OpenCV does, torchvision does not.

    Raises
    ------
    DataError
        When a value is none of the accepted ones.
    """

    size: int | Sequence[int] | None = None
    resize: Resize = "stretch"
    shorter: int | None = None
    resample: Resample = "bilinear"
    channels: Channels | None = None
    scale: float | None = None
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    layout: Layout | None = None
    recursive: bool = True
    upright: bool = True
    origin: str = dataclasses.field(default="images", init=False, repr=False, compare=False)
    """Names the options in errors: their file."""

    def __post_init__(self) -> None:
        for name, accepted in (
            ("resize", get_args(Resize)),
            ("resample", get_args(Resample)),
            ("channels", (None, *get_args(Channels))),
            ("layout", (None, *get_args(Layout))),
            ("recursive", (False, True)),
            ("upright", (False, True)),
        ):
            value = getattr(self, name)
            if value not in accepted:
                listed = ", ".join(repr(item) for item in accepted if item is not None)
                raise DataError(f"images: expected {name} as one of {listed}, got {value!r}")
        pair = self.size if isinstance(self.size, Sequence) else (self.size, self.size)
        if self.size is not None and (len(pair) != 2 or not all(map(_is_size, pair))):
            raise DataError(
                f"images: expected size as an int or (height, width), got {self.size!r}"
            )
        if self.shorter is not None and (self.resize != "crop" or not _is_size(self.shorter)):
            raise DataError(
                f"images: shorter is an int >= 1 and for resize 'crop', got {self.shorter!r} with "
                f"resize {self.resize!r}"
            )
        for name in ("scale", "mean", "std"):
            numbers = np.atleast_1d(_numbers(name, getattr(self, name)))
            if not np.isfinite(numbers).all() or (name != "mean" and not numbers.all()):
                raise DataError(f"images: {name} has to be finite{' and not 0' * (name != 'mean')}")

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of `size`."""
        if self.size is None:
            return None
        return (
            (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])
        )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> ImageOptions:
        """Read the options from a TOML file, each a key of its own: ``size = [224, 224]``.

        Raises
        ------
        DataError
            When the file cannot be read, or a key or value is none of the accepted ones.
        """
        try:
            given = tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        accepted = [field.name for field in dataclasses.fields(cls) if field.init]
        unknown = [key for key in given if key not in accepted]
        if unknown:
            raise DataError(f"{path}: unknown key {unknown[0]!r}; accepted: {', '.join(accepted)}")
        try:
            options = cls(**given)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        object.__setattr__(options, "origin", os.fspath(path))
        return options


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        numbers = np.asarray(1.0 if value is None else value, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"images: expected {name} as a number, got {value!r}") from error
    if numbers.ndim > 1 or (name == "scale" and numbers.ndim):
        accepted = "a number" if name == "scale" else "a number or one for each channel"
        raise DataError(f"images: expected {name} as {accepted}, got {value!r}")
    return numbers
