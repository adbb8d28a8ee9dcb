"""Every remark: on what it is made, and on what it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import TensorProto, helper

import cbn
from cbn import export
from cbn.export.lint import lint
from cbn.export.remarks import REMARKS


def codes(model: Any) -> list[str]:
    return [row.remark.code for row in lint(model).rows]


def stored(**changed: Any) -> onnx.ModelProto:
    arrays = {k: np.asarray(v, np.float32) for k, v in changed.items()}
    return onnx_models.single(arrays={**onnx_models.parameters(), **arrays})


def node(**attributes: Any) -> onnx.ModelProto:
    return onnx_models.make_model([onnx_models.batch_norm_node(**attributes)])


def old(opset: int, **attributes: Any) -> onnx.ModelProto:
    return onnx_models.make_model(
        [onnx_models.batch_norm_node(opset=opset, **attributes)], opset=opset
    )


def overridable() -> onnx.ModelProto:
    model = onnx_models.single()
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [3]))
    return model


def not_constant() -> onnx.ModelProto:
    model = overridable()
    del model.graph.initializer[0]
    return model


def twice() -> onnx.ModelProto:
    return onnx_models.make_model(
        [onnx_models.batch_norm_node(y="h"), onnx_models.batch_norm_node("h")]
    )


def aliased() -> onnx.ModelProto:
    return onnx_models.make_model(
        [onnx_models.batch_norm_node(training=True, inputs=["v", "b", "m", "v"])]
    )


def equal() -> onnx.ModelProto:
    """Two initializers of one content, which onnxruntime keeps once."""
    same = np.ones(3, np.float32)
    arrays = {**onnx_models.parameters(), "s": same, "v": same.copy()}
    return onnx_models.single(training=True, arrays=arrays)


def disguised() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["r"]),
        onnx_models.batch_norm_node("r", "h", training=True),
        helper.make_node("Reshape", ["h", "back"], ["y"]),
    ]
    arrays = {
        **{k: np.tile(v, 2) for k, v in onnx_models.parameters().items()},
        "flat": np.array([1, 6, -1]),
        "back": np.array([2, 3, -1]),
    }
    return onnx_models.make_model(nodes, arrays=arrays, shape=(2, 3, 5))


CASES: list[tuple[str, Callable[[], onnx.ModelProto]]] = [
    ("non-positive-variance", lambda: stored(v=[1, -1, 1])),
    ("not-finite", lambda: stored(b=[1, np.nan, 1])),
    ("shape-mismatch", lambda: stored(m=[1, 2])),
    ("shape-mismatch", lambda: stored(**{name: [1, 2] for name in "sbmv"})),
    ("aliased-in-training", aliased),
    ("aliased-in-training", equal),
    ("training-mode", lambda: onnx_models.single(training=True)),
    ("hidden-state", lambda: onnx_models.single(training=True)),
    ("untouched-statistics", lambda: stored(m=[0, 0, 0], v=[1, 1, 1])),
    ("spatial-0", lambda: old(8, spatial=0)),
    ("old-opset", lambda: old(6, is_test=1)),
    ("instance-norm", disguised),
    ("instance-norm", lambda: onnx_models.single(training=True, shape=(1, 3, 5))),
    ("beyond-float16", lambda: stored(v=[1, 70000, 1])),
    ("small-epsilon", lambda: node(epsilon=1e-6)),
    ("dead-channels", lambda: stored(s=[1, 1e-9, 1])),
    ("other-momentum", lambda: node(momentum=0.1)),
    ("shared-statistics", twice),
    ("not-constant", not_constant),
    ("overridable", overridable),
    ("no-batch-norm", lambda: onnx_models.make_model([helper.make_node("Abs", ["x"], ["y"])])),
]


@pytest.mark.parametrize(("code", "make"), CASES)
def test_a_remark_is_made(code: str, make: Callable[[], onnx.ModelProto]) -> None:
    assert code in codes(make())


def test_no_remark_is_made_of_a_sound_node() -> None:
    report = lint(onnx_models.single())
    assert report
    assert (report.rows, str(report)) == ((), "nothing to remark")
    assert codes(node(epsilon=1e-5, momentum=0.9)) == []


def test_every_code_is_tested_and_says_what_to_do() -> None:
    elsewhere = {"decomposed", "set-by-caller"}
    assert {code for code, _ in CASES} | elsewhere == set(REMARKS)
    for kind in REMARKS.values():
        assert kind.meaning
        assert kind.advice


def test_errors_come_first_and_make_it_false() -> None:
    nodes = [
        onnx_models.batch_norm_node(y="h", momentum=0.1),
        onnx_models.batch_norm_node("h", inputs=["s", "b", "m", "negative"]),
    ]
    arrays = {**onnx_models.parameters(), "negative": -np.ones(3, np.float32)}
    report = lint(onnx_models.make_model(nodes, arrays=arrays))
    assert not report
    assert report.rows[0].name == "bn_y"
    assert report.rows[0].cells()[1:3] == ("error", "non-positive-variance")
    assert report.rows[0].remark.detail == "3 of 3 channels (channels 0, 1, 2), the least is -1"
    assert report.summary == "1 error, 3 notes"
    assert "What" not in report.summary
    assert json.loads(json.dumps(report.to_dict()))["summary"] == report.summary


def test_warnings_leave_it_true() -> None:
    report = lint(onnx_models.single(training=True))
    assert report
    assert report.summary == "2 warnings"


def test_a_caller_that_sets_attributes() -> None:
    inner = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"])
    reference = onnx.AttributeProto(
        name="epsilon", ref_attr_name="e", type=onnx.AttributeProto.FLOAT
    )
    inner.attribute.append(reference)
    body = helper.make_function(
        "local", "F", ["x", *"sbmv"], ["y"], [inner], [helper.make_opsetid("", 15)], ["e"]
    )
    call = helper.make_node("F", ["x", *"sbmv"], ["y"], domain="local", e=0.5)
    found = codes(onnx_models.make_model([call], functions=[body]))
    assert {"set-by-caller", "not-constant"} <= set(found)


@pytest.mark.parametrize("form", ["affine", "primitives"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("opset", [13, 18])
def test_a_batch_norm_in_other_operators_is_seen(form: str, training: bool, opset: int) -> None:
    if form == "affine" and training:
        form = "primitives"
    layer = cbn.BatchNorm2d(3).train(training)
    layer.running_var[:] = 2
    layer.running_mean[:] = 1
    (row,) = lint(export.to_onnx(layer, opset=opset, form=form)).rows
    assert row.remark.code == "decomposed"
    assert ("batch" if training else "stored") in row.remark.detail


def test_a_layer_norm_is_none() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["c"]),
        helper.make_node("Mul", ["c", "c"], ["sq"]),
        helper.make_node("ReduceMean", ["sq"], ["var"], axes=[-1]),
        helper.make_node("Add", ["var", "eps"], ["add"]),
        helper.make_node("Sqrt", ["add"], ["root"]),
        helper.make_node("Div", ["c", "root"], ["n"]),
        helper.make_node("Mul", ["n", "scale"], ["a"]),
        helper.make_node("Add", ["a", "scale"], ["y"]),
    ]
    arrays = {"eps": np.array(1e-5, np.float32), "scale": np.arange(1, 6, dtype=np.float32)}
    assert codes(onnx_models.make_model(nodes, arrays=arrays)) == ["no-batch-norm"]
