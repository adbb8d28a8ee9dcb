"""Layers made from a model compute what its nodes do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import oracles
import pytest
from onnx import TensorProto, numpy_helper

import cbn
from cbn.export import opsets
from cbn.export.build import to_onnx
from cbn.export.files import ModelError
from cbn.export.read import from_onnx

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@pytest.mark.parametrize("opset", [1, 6, 7, 9, 14, 15, opsets.newest_opset()])
def test_every_opset_in_eval_mode(opset: int) -> None:
    attributes = {"is_test": 1} if opset < 7 else {}
    layers = from_onnx(
        onnx_models.of_opset(opset, name="bn", epsilon=0.5, momentum=0.75, **attributes)
    )
    assert list(layers) == ["bn"]
    bn = layers["bn"]
    assert isinstance(bn, cbn.BatchNorm2d)
    assert (bn.training, bn.eps, bn.momentum, bn.dtype) == (False, 0.5, 0.25, np.float32)
    assert bn.num_batches_tracked == 0
    stored = onnx_models.named_parameters()
    for key, name in (
        ("weight", "scale"),
        ("bias", "B"),
        ("running_mean", "mean"),
        ("running_var", "var"),
    ):
        np.testing.assert_array_equal(getattr(bn, key), stored[name])


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"),
    [
        (6, ["y"], {}),
        (7, ["y", "m", "v", "sm", "sv"], {}),
        (15, ["y", "m", "v"], {"training_mode": 1}),
    ],
)
def test_a_training_node_makes_a_training_layer(
    opset: int, outputs: list[str], attributes: dict[str, int]
) -> None:
    (bn,) = from_onnx(onnx_models.of_opset(opset, outputs, **attributes)).values()
    assert bn.training


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (("N", 3), cbn.BatchNorm1d),
        (("N", 3, "L"), cbn.BatchNorm1d),
        (("N", 3, 4, 4), cbn.BatchNorm2d),
        (("N", 3, 2, 4, 4), cbn.BatchNorm3d),
    ],
)
def test_the_layer_s_kind_is_the_rank_s(shape: tuple[Any, ...], kind: type) -> None:
    (bn,) = from_onnx(onnx_models.plain_model([onnx_models.plain_node()], shape=shape)).values()
    assert type(bn) is kind


def rankless() -> onnx.ModelProto:
    proto = onnx_models.of_opset()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    return proto


def test_a_rank_that_the_model_does_not_tell_is_asked_for() -> None:
    with pytest.raises(ModelError, match=r"how many dimensions.* give rank=2 to 5"):
        from_onnx(rankless())
    (bn,) = from_onnx(rankless(), rank=5).values()
    assert isinstance(bn, cbn.BatchNorm3d)
    (bn,) = from_onnx(onnx_models.of_opset(), rank=5).values()
    assert isinstance(bn, cbn.BatchNorm2d), "what the model says goes first"
    with pytest.raises(ValueError, match="rank from 2 to 5, got 1"):
        from_onnx(rankless(), rank=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [cbn.BatchNorm1d, cbn.BatchNorm2d, cbn.BatchNorm3d])
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_comes_back_as_it_went(kind: Any, dtype: str, training: bool) -> None:
    bn = kind(5, eps=2.0**-7, momentum=0.125, dtype=dtype).train(training)
    rng = np.random.default_rng(0)
    bn.load_state_dict({key: rng.uniform(0.5, 2, 5) for key in list(bn.state_dict())[:4]})
    (back,) = from_onnx(to_onnx(bn)).values()
    assert type(back) is kind
    assert (back.eps, back.momentum, back.training) == (bn.eps, bn.momentum, training)
    for key, array in bn.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[key], array)


def test_eps_and_momentum_are_the_numbers_in_the_file() -> None:
    (bn,) = from_onnx(onnx_models.of_opset()).values()
    assert (bn.eps, bn.momentum) == (float(np.float32(1e-5)), 1 - float(np.float32(0.9)))


def test_parameters_of_16_bits_become_float32() -> None:
    stored = onnx_models.named_parameters(dtype=np.float16)
    proto = onnx_models.plain_model([onnx_models.plain_node()], stored, dtype=TensorProto.FLOAT16)
    (bn,) = from_onnx(proto).values()
    assert bn.dtype == np.float32
    np.testing.assert_array_equal(bn.weight, stored["scale"].astype(np.float32))


def test_parameters_that_are_not_constant() -> None:
    proto = onnx_models.of_opset()
    del proto.graph.initializer[2]
    proto.graph.input.append(onnx.helper.make_tensor_value_info("mean", TensorProto.FLOAT, [3]))
    with pytest.raises(ModelError, match="expected a constant mean, got one from: graph input"):
        from_onnx(proto)


def test_parameters_of_different_shapes() -> None:
    stored = onnx_models.named_parameters()
    proto = onnx_models.plain_model(
        [onnx_models.plain_node()], {**stored, "var": np.ones(4, np.float32)}
    )
    with pytest.raises(ModelError, match=r"one shape \[C\], got scale \[3\], .* var \[4\]"):
        from_onnx(proto)


def test_statistics_per_activation() -> None:
    stored = {name: a.reshape(3, 1, 1) for name, a in onnx_models.named_parameters().items()}
    proto = onnx_models.plain_model([onnx_models.plain_node(spatial=0)], stored, opset=8)
    with pytest.raises(ModelError, match=r"per activation \(spatial=0"):
        from_onnx(proto)
    with pytest.raises(ModelError, match="more than 2 dimensions"):
        from_onnx(onnx_models.of_opset(8, spatial=0))


def test_over_two_dimensions_an_activation_is_a_channel() -> None:
    proto = onnx_models.plain_model([onnx_models.plain_node(spatial=0)], opset=8, shape=("N", 3))
    (bn,) = from_onnx(proto).values()
    assert isinstance(bn, cbn.BatchNorm1d)


def test_no_nodes_no_layers() -> None:
    assert from_onnx(DATA / "light" / "light_squeezenet.onnx") == {}


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50", 53), ("densenet121", 121), ("inception_v2", 69), ("shufflenet", 49)],
)
def test_the_light_models_of_onnx(name: str, count: int) -> None:
    layers = from_onnx(DATA / "light" / f"light_{name}.onnx")
    assert len(layers) == count
    assert all(isinstance(bn, cbn.BatchNorm2d) and not bn.training for bn in layers.values())


@pytest.mark.parametrize(
    "name",
    [path.name for path in sorted((DATA / "pytorch-converted").glob("test_BatchNorm*"))],
)
def test_models_that_pytorch_wrote(name: str) -> None:
    folder = DATA / "pytorch-converted" / name
    (bn,) = from_onnx(folder / "model.onnx").values()
    (x,) = arrays(folder / "test_data_set_0", "input")
    (y,) = arrays(folder / "test_data_set_0", "output")
    assert (
        oracles.ulp_error(y, x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps) <= 16
    ), "what PyTorch computed"
    assert (
        oracles.ulp_error(bn(x), x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
        <= oracles.MAX_ULP
    )


def arrays(folder: Path, kind: str) -> list[np.ndarray]:
    return [
        numpy_helper.to_array(onnx.load_tensor(path))
        for path in sorted(folder.glob(f"{kind}_*.pb"))
    ]


@pytest.mark.parametrize(("attribute", "value"), [("epsilon", -1.0), ("momentum", 2.0)])
def test_an_attribute_that_no_layer_has_is_named(attribute, value):
    model = onnx_models.single()
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])
    with pytest.raises(ModelError, match=f"BatchNormalization .*{attribute} {value:g}"):
        from_onnx(model)
