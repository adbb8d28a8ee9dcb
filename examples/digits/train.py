"""Train a small convolutional network on scikit-learn's digits and export it with its batch norms.

Writes beside itself, or into ``--out FOLDER``:

- ``digits.onnx``: eval mode, every BatchNormalization node kept;
- ``digits_training.onnx``: the same weights, the nodes in training mode (training_mode=1);
- ``digits.npz``: the held-out test set: ``image`` (n, 1, 8, 8) float32, ``label`` (n,) int64;
- ``digits.safetensors``: the network's state dict, as PyTorch names it.

Needs torch, scikit-learn, onnx, onnxruntime and safetensors: ``python examples/digits/train.py``.
"""

from __future__ import annotations

import argparse
import copy
import io
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED = 0
EPOCHS = 30
BATCH_SIZE = 50
OPSET = 17
MIN_ACCURACY = 0.98


class Net(nn.Sequential):
    """Five blocks of convolution (no bias), BatchNorm2d and ReLU, then one linear layer.

    Input: (N, 1, 8, 8) images with values from 0 to 1. Output: (N, 10) logits.
    """

    def __init__(self) -> None:
        """Make the layers; their initial weights come from torch's global generator."""
        super().__init__(
            OrderedDict(
                [
                    *self._block(1, 1, 16),
                    *self._block(2, 16, 16),
                    ("pool2", nn.MaxPool2d(2)),
                    *self._block(3, 16, 32),
                    *self._block(4, 32, 32),
                    ("pool4", nn.MaxPool2d(2)),
                    *self._block(5, 32, 32),
                    ("flatten", nn.Flatten()),
                    ("linear", nn.Linear(32 * 2 * 2, 10)),
                ]
            )
        )

    @staticmethod
    def _block(index: int, channels_in: int, channels_out: int) -> list[tuple[str, nn.Module]]:
        return [
            (f"conv{index}", nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)),
            (f"bn{index}", nn.BatchNorm2d(channels_out)),
            (f"relu{index}", nn.ReLU()),
        ]


def load_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the digits as train images, train labels, test images, test labels.

    A quarter of the images is held out, each class in proportion. Images are (n, 1, 8, 8) float32
    from 0 to 1 in steps of 1/16, labels (n,) int64.
    """
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    return train_images, train_labels, test_images, test_labels


def train(images: np.ndarray, labels: np.ndarray) -> Net:
    """Train a new network with AdamW and a one-cycle schedule; returns it in eval mode."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of sums, so the weights, depend on the thread count
    torch.use_deterministic_algorithms(True)
    net = Net().train()
    x, target = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    steps = EPOCHS * -(-len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), target[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: Net, *, training: bool) -> onnx.ModelProto:
    """Export with every BatchNormalization node kept, and a free batch size.

    torch.onnx folds batch norms into convolutions unless told to preserve the module's mode.
    Tracing in training mode moves the running statistics: a copy is traced, and the weights of
    the file are put back to those of ``net``.
    """
    mode = torch.onnx.TrainingMode
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The TorchScript exporter is the one that can keep the nodes, and it is deprecated; it
        # also remarks on a training-mode export, which is what was asked for.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(net).train(training),
            (torch.zeros(2, 1, 8, 8),),
            buffer,
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            training=mode.TRAINING if training else mode.PRESERVE,
            do_constant_folding=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    weights = net.state_dict()
    for initializer in model.graph.initializer:
        array = weights[initializer.name].numpy()
        initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    for node in model.graph.node:
        node.doc_string = ""  # may hold the paths of the machine that exported
        del node.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def torch_accuracy(net: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of images that the network, in the mode it is in, labels correctly."""
    with torch.inference_mode():
        logits = net(torch.from_numpy(images)).numpy()
    return float((logits.argmax(axis=1) == labels).mean())


def onnx_accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of images that the file, run by onnxruntime, labels correctly."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    return float((logits.argmax(axis=1) == labels).mean())


def main() -> None:
    """Train, export, write the four files and check their accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write")
    folder = parser.parse_args().out
    train_images, train_labels, images, labels = load_data()

    net = train(train_images, train_labels)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(export(net, training=False), folder / "digits.onnx")
    onnx.save(export(net, training=True), folder / "digits_training.onnx")
    np.savez_compressed(folder / "digits.npz", image=images, label=labels)
    save_file(net.state_dict(), folder / "digits.safetensors")

    accuracies = {
        "PyTorch": torch_accuracy(net, images, labels),
        "onnxruntime": onnx_accuracy(folder / "digits.onnx", images, labels),
    }
    for name, accuracy in accuracies.items():
        print(f"{name}: {accuracy:.2%} of {len(labels)} test images")
        if accuracy < MIN_ACCURACY:
            raise SystemExit(f"{name}: expected at least {MIN_ACCURACY:.0%}")


if __name__ == "__main__":
    main()
