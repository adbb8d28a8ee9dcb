"""Corrupt the digits, re-estimate the running statistics, and show the accuracy before and after.

    python examples/digits/recalibrate.py                      # the table
    python examples/digits/recalibrate.py --plot accuracy.svg  # and the plot (needs matplotlib)
    python examples/digits/recalibrate.py --save fog fog.npz   # inputs to try the commands on

For each corruption ``cbn.export.recalibrate`` sees the 450 test images, corrupted, and no label;
a fifth of them it holds out. Accuracy is that on all 450.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cbn import export

HERE = Path(__file__).resolve().parent
MODEL = HERE / "digits.onnx"
# The corruptions that the tests hold the accuracies to.
CORRUPTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "clean": lambda images: images,
    **runpy.run_path(str(HERE.parents[1] / "tests" / "corruptions.py"))["CORRUPTIONS"],
}


class Accuracy(NamedTuple):
    """Of one corruption: the share of images that a model labels correctly."""

    corruption: str
    stored: float
    recalibrated: float
    weight: float  # of the stored statistics, as prior="auto" chose it


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the test images (450, 1, 8, 8), float32 from 0 to 1, and their labels (450,)."""
    with np.load(HERE / "digits.npz") as arrays:
        return arrays["image"], arrays["label"]


def accuracy(model: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that onnxruntime, with this model, labels correctly."""
    (logits,) = export.make_session(model).run(["logits"], {"image": images})
    return float((logits.argmax(axis=1) == labels).mean())


def measure(method: str = "batch") -> list[Accuracy]:
    """Re-estimate the statistics under each corruption."""
    images, labels = load_digits()
    found = []
    for name, corrupt in CORRUPTIONS.items():
        seen = corrupt(images)
        result = export.recalibrate(MODEL, {"image": seen}, method=method)
        before, after = (accuracy(model, seen, labels) for model in (MODEL, result.model))
        found.append(Accuracy(name, before, after, result.prior.weight))
    return found


def table(rows: list[Accuracy]) -> str:
    """Lay out the accuracies as text."""
    lines = ["corruption        stored  recalibrated  weight of stored"]
    lines += [
        f"{row.corruption:<16}  {row.stored:6.1%}  {row.recalibrated:12.1%}  {row.weight:16.0%}"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: list[Accuracy], path: Path) -> None:
    """Draw a line from each accuracy before to the one after; the extension chooses the format."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "digits", "font.size": 10}
    rows = sorted(rows, key=lambda row: row.stored)
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    before, after, ink = "#b5541c", "#1b6ca8", "#444444"
    for y, row in enumerate(rows):
        axes.plot([row.stored, row.recalibrated], [y, y], color="#c4c4c4", lw=2.5, zorder=1)
        for value, other, color in (
            (row.stored, row.recalibrated, before),
            (row.recalibrated, row.stored, after),
        ):
            left = value < other or (value == other and color == before)
            axes.annotate(
                f"{value:.1%}",
                (value, y),
                xytext=(-8 if left else 8, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                color=color,
                fontsize=9,
            )
    places = range(len(rows))
    axes.scatter([r.stored for r in rows], places, color=before, s=44, zorder=2, label="stored")
    axes.scatter(
        [r.recalibrated for r in rows],
        places,
        color=after,
        s=44,
        zorder=3,
        marker="D",
        label="re-estimated",
    )
    axes.set_yticks(places, [row.corruption.replace("_", " ") for row in rows])
    axes.set_xlim(0.4, 1.08)
    axes.set_xticks(np.arange(0.4, 1.01, 0.1), [f"{x:.0%}" for x in np.arange(0.4, 1.01, 0.1)])
    axes.set_title("Accuracy on the digits, by corruption", loc="left", color=ink)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=ink)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=ink)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, facecolor="white", dpi=150)


def main() -> None:
    """Print the table, and draw or save what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=["batch", "sequential"], default="batch")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .svg or .png")
    parser.add_argument(
        "--save",
        nargs=2,
        metavar=("CORRUPTION", "FILE"),
        help=f"write the corrupted images and labels as .npz: {', '.join(CORRUPTIONS)}",
    )
    arguments = parser.parse_args()
    if arguments.save:
        name, path = arguments.save
        if name not in CORRUPTIONS:
            parser.error(f"expected one of {', '.join(CORRUPTIONS)}, got {name}")
        images, labels = load_digits()
        np.savez_compressed(path, image=CORRUPTIONS[name](images), label=labels)
        return
    rows = measure(arguments.method)
    print(table(rows))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
