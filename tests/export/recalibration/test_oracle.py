"""Re-estimated digits against PyTorch: train mode, momentum=None, over the same corrupted data."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from corruptions import CORRUPTIONS, DIGITS, load_digits

from cbn import export

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

MODEL = DIGITS / "digits.onnx"
IMAGES, LABELS = load_digits()
BATCH = 30
ALL = {"clean": lambda images: images, **CORRUPTIONS}


def network() -> Any:
    """The example network in PyTorch, with cumulative averages in place of a momentum."""
    from safetensors.torch import load_file
    from torch import nn

    layers: OrderedDict[str, Any] = OrderedDict()
    channels = (1, 16, 16, 32, 32, 32)
    for index in range(1, 6):
        before, after = channels[index - 1 : index + 1]
        layers[f"conv{index}"] = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(after, momentum=None)
        layers[f"relu{index}"] = nn.ReLU()
        if index in (2, 4):
            layers[f"pool{index}"] = nn.MaxPool2d(2)
    layers["flatten"], layers["linear"] = nn.Flatten(), nn.Linear(128, 10)
    net = nn.Sequential(layers)
    net.load_state_dict(load_file(DIGITS / "digits.safetensors"))
    return net.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of torch's beside those of onnxruntime only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def oracle(name: str) -> float:
    """Accuracy after what ``torch.optim.swa_utils.update_bn`` does."""
    images = ALL[name](IMAGES)
    net = network()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    with torch.no_grad():
        net.train()
        for batch in torch.from_numpy(images).split(BATCH):
            net(batch)
        return share_right(net.eval()(torch.from_numpy(images)).numpy())


def accuracy(model: Any, images: np.ndarray) -> float:
    return share_right(export.make_session(model).run(["logits"], {"image": images})[0])


def share_right(logits: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == LABELS).mean())


def re_estimated(images: np.ndarray, method: str, **options: Any) -> export.RecalibrationResult:
    return export.recalibrate(MODEL, images, method=method, batch_size=BATCH, **options)


def test_the_oracle_is_the_network_of_the_file():
    with torch.no_grad():
        expected = network()(torch.from_numpy(IMAGES)).numpy()
    (got,) = export.make_session(MODEL).run(["logits"], {"image": IMAGES})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["batch", "sequential"])
@pytest.mark.parametrize("name", ALL)
def test_accuracy_is_within_one_point_of_the_oracle(name, method):
    images = ALL[name](IMAGES)
    result = re_estimated(images, method, prior=0, held_out=0)
    assert abs(accuracy(result.model, images) - oracle(name)) <= 0.01


@pytest.mark.parametrize("method", ["batch", "sequential"])
def test_clean_digits_lose_nothing(method):
    before = accuracy(MODEL, IMAGES)
    for options in ({"prior": 0, "held_out": 0}, {"prior": "auto"}):
        result = re_estimated(IMAGES, method, **options)
        assert accuracy(result.model, IMAGES) >= before


def test_the_tests_would_see_a_difference():
    """Eight corruptions, each of which costs accuracy that re-estimation gives back."""
    assert len(CORRUPTIONS) == 8
    for name, corrupt in CORRUPTIONS.items():
        assert oracle(name) - accuracy(MODEL, corrupt(IMAGES)) > 0.03
