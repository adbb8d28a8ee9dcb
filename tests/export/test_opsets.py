"""The table of versions agrees with onnx's own schemas and with what onnxruntime loads."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_models
import pytest

from cbn.export import opsets

SCHEMAS = {
    schema.since_version: schema
    for schema in onnx.defs.get_all_schemas_with_history()
    if schema.name == "BatchNormalization" and schema.domain == ""
}


def test_every_version_that_onnx_knows_is_in_the_table() -> None:
    assert [version.since for version in opsets.VERSIONS] == sorted(SCHEMAS)


@pytest.mark.parametrize("version", opsets.VERSIONS, ids=lambda version: str(version.since))
def test_attributes_outputs_and_defaults_are_the_schema_s(version: opsets.OperatorVersion) -> None:
    schema = SCHEMAS[version.since]
    assert set(version.attributes) == set(schema.attributes)
    assert [output.name for output in schema.outputs] == list(version.outputs)
    assert schema.attributes["epsilon"].default_value.f == np.float32(opsets.DEFAULT_EPSILON)
    assert schema.attributes["momentum"].default_value.f == np.float32(opsets.DEFAULT_MOMENTUM)


@pytest.mark.parametrize(
    ("opset", "since"),
    [(1, 1), (5, 1), (6, 6), (7, 7), (8, 7), (9, 9), (13, 9), (14, 14), (15, 15), (99, 15)],
)
def test_the_version_in_force(opset: int, since: int) -> None:
    assert opsets.version_at(opset).since == since


def test_there_is_no_opset_0() -> None:
    with pytest.raises(ValueError, match="1 or later, got 0"):
        opsets.version_at(0)


@pytest.mark.parametrize("opset", [1, 6])
def test_is_test_tells_the_mode_up_to_opset_6(opset: int) -> None:
    version = opsets.version_at(opset)
    assert opsets.mode_of(version, is_test=1, outputs=5) == "eval"
    assert opsets.mode_of(version, is_test=0, outputs=1) == "training"


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_the_output_count_tells_the_mode_from_opset_7(opset: int) -> None:
    version = opsets.version_at(opset)
    assert opsets.mode_of(version, outputs=1) == "eval"
    assert opsets.mode_of(version, outputs=2) == "training"
    assert opsets.mode_of(version, outputs=1, training_mode=1, is_test=1) == "eval"


@pytest.mark.parametrize("opset", [14, 15])
def test_training_mode_tells_the_mode_from_opset_14(opset: int) -> None:
    version = opsets.version_at(opset)
    assert opsets.mode_of(version, training_mode=0, outputs=3) == "eval"
    assert opsets.mode_of(version, training_mode=1, outputs=1) == "training"


def test_the_default_opset_is_one_that_may_be_asked_for() -> None:
    default = opsets.resolve_opset(None)
    assert opsets.resolve_opset(default) == default
    assert opsets.version_at(default) is opsets.VERSIONS[-1]


@pytest.mark.parametrize("opset", [6, 0, -1, opsets.newest_opset() + 1])
def test_an_opset_out_of_range(opset: int) -> None:
    with pytest.raises(ValueError, match=f"from 7 to {opsets.newest_opset()} .*, got {opset}"):
        opsets.resolve_opset(opset)


@pytest.mark.parametrize("opset", ["15", 15.0, True])
def test_an_opset_that_is_no_integer(opset: object) -> None:
    with pytest.raises(TypeError, match="expected opset as an int"):
        opsets.resolve_opset(opset)  # type: ignore[arg-type]


def test_the_oldest_opset_built_is_the_oldest_that_onnxruntime_runs() -> None:
    x = np.zeros((2, 3, 4, 4), np.float32)
    assert onnx_models.run(onnx_models.of_opset(opset=opsets.OLDEST_BUILT), x)["y"].shape == x.shape
    with pytest.raises(Exception, match="Could not find an implementation for BatchNormalization"):
        onnx_models.run(onnx_models.of_opset(opset=6, is_test=1), x)


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 4), (9, 4), (15, 8), (21, 10)])
def test_the_ir_version_is_the_lowest_that_the_opset_allows(opset: int, ir_version: int) -> None:
    assert opsets.ir_version_for(opset) == ir_version
