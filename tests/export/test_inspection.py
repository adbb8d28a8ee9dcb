"""What inspect says of a node, and the remarks it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import TensorProto, helper

import cbn
from cbn.export.build import to_onnx
from cbn.export.inspection import InspectRow, inspect

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def row(proto: onnx.ModelProto) -> InspectRow:
    (only,) = inspect(proto).rows
    return only


def codes(proto: onnx.ModelProto) -> set[str]:
    return {remark.code for remark in row(proto).remarks}


def with_parameters(opset: int = 15, **changed: Any) -> onnx.ModelProto:
    stored = {**onnx_models.named_parameters(), **changed}
    return onnx_models.plain_model([onnx_models.plain_node(epsilon=0.5)], stored, opset=opset)


def test_a_row_says_what_a_reader_asks() -> None:
    proto = with_parameters(var=np.array([0.25, 4.0, 1.0], np.float32))
    found = row(proto)
    assert (found.name, found.channels, found.opset, found.mode) == ("y", 3, 15, "eval")
    assert (found.input_shape, found.dtype, found.eps) == (("N", 3, "H", "W"), "FLOAT", 0.5)
    assert found.running_var == (0.25, 4.0)
    assert set(found.sources.values()) == {"initializer"}
    assert found.remarks == ()
    assert found.ok
    shown = ("y", "3", "15", "eval", "initializer", "0.25 .. 4", "graph input", "graph output")
    assert found.cells()[:8] == shown
    assert found.cells()[9] == "-"


def test_a_row_says_what_stands_around_the_node_and_where_it_folds() -> None:
    weight = np.ones((3, 3, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        onnx_models.plain_node(["n"], x="h"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
        helper.make_node("Abs", ["n"], ["z"], name="abs"),
    ]
    found = row(onnx_models.plain_model(nodes, {**onnx_models.named_parameters(), "w": weight}))
    assert found.producer == "Conv 'conv'"
    assert found.consumers == ("Relu 'relu'", "Abs 'abs'")
    assert (found.folds, found.folding) == (True, "into Conv 'conv'")
    assert found.cells()[8] == "into Conv 'conv'"


def test_a_row_says_why_a_node_does_not_fold() -> None:
    found = row(onnx_models.of_opset(15, ["y", "m", "v"], training_mode=1))
    assert found.folds is False
    assert "training mode" in found.folding
    assert found.cells()[8].startswith("no: ")


def test_a_broken_node_is_still_shown() -> None:
    found = row(with_parameters(mean=np.zeros(2, np.float32)))
    assert found.folds is None
    assert "expected mean of shape [3], got [2]" in found.folding


def test_a_model_without_nodes_says_why() -> None:
    report = inspect(onnx_models.plain_model([helper.make_node("Relu", ["x"], ["y"])], {}))
    assert len(report) == 0
    assert "no BatchNormalization node: probably folded by the exporter" in str(report)
    assert report.to_dict()["message"] == str(report)


def test_the_table_ends_with_what_its_remarks_mean() -> None:
    report = inspect(onnx_models.of_opset(15, ["y", "m", "v"], training_mode=1))
    table, _, meanings = str(report).partition("\n\n")
    assert "training-mode" in table
    assert meanings.startswith("training-mode: normalizes with the batch's statistics")


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"var": np.array([1, -0.5, 1], np.float32)}, "non-positive-variance"),
        ({"var": np.array([1, np.nan, 1], np.float32)}, "not-finite"),
        ({"scale": np.array([1, np.inf, 1], np.float32)}, "not-finite"),
        ({"mean": np.zeros(2, np.float32)}, "shape-mismatch"),
    ],
)
def test_faults(changed: dict[str, np.ndarray], code: str) -> None:
    proto = with_parameters(**changed)
    assert code in codes(proto)
    assert not inspect(proto)


def test_statistics_of_a_layer_that_was_never_trained() -> None:
    assert codes(to_onnx(cbn.BatchNorm2d(3).eval())) == {"untouched-statistics"}


def test_training_mode() -> None:
    model = to_onnx(cbn.BatchNorm2d(3))
    assert codes(model) == {"training-mode"}
    assert inspect(model)


def test_running_statistics_that_are_no_outputs() -> None:
    proto = onnx_models.of_opset(15, ["y", "m", "v"], training_mode=1)
    assert codes(proto) == {"training-mode", "hidden-state"}
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 5, 5)).astype(np.float32)
    shared = onnx_models.plain_model(
        [
            helper.make_node(
                "BatchNormalization", ["x", "v", "m", "m", "v"], ["y", "a", "b"], training_mode=1
            )
        ],
        {"m": np.zeros(3, np.float32), "v": np.ones(3, np.float32)},
    )
    once, again = (onnx_models.run(shared, x, times=times)["y"] for times in (1, 2))
    assert not np.array_equal(once, again), "onnxruntime no longer does this: the remark can go"


def test_statistics_per_activation_and_old_opsets() -> None:
    assert codes(onnx_models.of_opset(6, is_test=1, spatial=0)) == {"spatial-0", "old-opset"}
    assert codes(onnx_models.of_opset(7, spatial=0)) == {"spatial-0"}


def test_parameters_from_outside() -> None:
    proto = onnx_models.of_opset()
    proto.graph.input.append(helper.make_tensor_value_info("var", TensorProto.FLOAT, [3]))
    assert codes(proto) == {"overridable"}
    del proto.graph.initializer[3]
    found = row(proto)
    assert {remark.code for remark in found.remarks} == {"not-constant"}
    assert found.running_var is None
    assert found.cells()[4:6] == ("scale/bias/mean: initializer; var: graph input", "?")


def test_statistics_of_two_nodes() -> None:
    nodes = [onnx_models.plain_node(["h"]), onnx_models.plain_node(["y"], x="h")]
    report = inspect(onnx_models.plain_model(nodes))
    assert [[remark.code for remark in row.remarks] for row in report.rows] == [
        ["shared-statistics"]
    ] * 2


def test_the_report_is_plain_json() -> None:
    proto = with_parameters(var=np.array([1, np.nan, 1], np.float32))
    text = json.dumps(inspect(proto).to_dict(), allow_nan=False)
    (found,) = json.loads(text)["rows"]
    assert found["running_var"] == [None, None]
    assert found["remarks"][0]["code"] == "not-finite"


@pytest.mark.parametrize(
    ("name", "count", "made"),
    [
        ("resnet50", 53, 46),
        ("densenet121", 121, 119),
        ("inception_v2", 69, 56),
        ("shufflenet", 49, 48),
    ],
)
def test_the_light_models_of_onnx(name: str, count: int, made: int) -> None:
    rows = inspect(LIGHT / f"light_{name}.onnx").rows
    assert len(rows) == count
    assert sum(row.sources["var"] == "ConstantOfShape" for row in rows) == made
    assert all(row.input_shape is not None and row.running_var is not None for row in rows)
