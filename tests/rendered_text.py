"""Lines of text drawn with Pillow, as a text recogniser takes them, and its answers read."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 48
WIDTH = 320

# fmt: off
WORDS = [
    "account", "address", "amount", "balance", "central", "customer", "date", "delivery",
    "invoice", "item", "lazy", "market", "north", "number", "order", "paid", "payment", "price",
    "quick", "receipt", "south", "station", "street", "summer", "total", "transfer", "winter",
]
# fmt: on


def recogniser() -> Path | None:
    """The file of PP-OCRv3's text recogniser, of the package rapidocr-onnxruntime 1.2.3.

    The package need not import: it also wants OpenCV, and nothing of it but the file is used.
    """
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], "models", "ch_PP-OCRv3_rec_infer.onnx")
    return path if path.exists() else None


def random_lines(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of two words and a number, and their images: (N, 3, 48, 320) float32 from -1 to 1.

    Dark on light, of changing size and contrast, in the font that Pillow brings along; 0 fills the
    row behind the text, as PaddleOCR has it.
    """
    generator = np.random.default_rng(seed)
    texts = [
        f"{generator.choice(WORDS)} {generator.choice(WORDS).upper()} {generator.integers(10, 999)}"
        for _ in range(count)
    ]
    return texts, np.stack([_drawn(text, generator) for text in texts])


def _drawn(text: str, generator: np.random.Generator) -> np.ndarray:
    font = ImageFont.load_default(int(generator.integers(24, 36)))
    left, top, right, bottom = map(round, font.getbbox(text))
    margin = int(generator.integers(3, 8))
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    image = Image.new("L", size, int(generator.integers(200, 256)))
    ink = int(generator.integers(0, 80))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=font)
    width = min(WIDTH, round(image.width * HEIGHT / image.height))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    row = np.zeros((3, HEIGHT, WIDTH), np.float32)
    row[:, :, :width] = pixels / 127.5 - 1
    return row


def characters(path: Path) -> list[str]:
    """The character of each class of the recogniser; class 0 is the blank, the last a space."""
    properties = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    return ["", *properties["character"].splitlines(), " "]


def read_text(probabilities: np.ndarray, alphabet: Sequence[str]) -> list[str]:
    """The texts of outputs (N, T, K): greedy decoding of connectionist temporal classification.

    The most probable class of each step; repeated ones count once, and blanks not at all (Graves et
    al., ICML 2006).
    """
    return [
        "".join(
            alphabet[index]
            for step, index in enumerate(row)
            if index and (step == 0 or row[step - 1] != index)
        )
        for row in probabilities.argmax(axis=-1)
    ]


def exact_lines(probabilities: np.ndarray, texts: Sequence[str], alphabet: Sequence[str]) -> float:
    """The share of lines that are read without a mistake; spaces do not count."""
    answers = read_text(probabilities, alphabet)
    pairs = zip(answers, texts, strict=True)
    return float(np.mean([a.replace(" ", "") == b.replace(" ", "") for a, b in pairs]))
