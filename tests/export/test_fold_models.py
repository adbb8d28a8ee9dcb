"""The networks that come with the onnx package: what remains of their 292 nodes, and why."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from cbn import export
from cbn.export.folding import fold

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NODES = {"resnet50": 53, "shufflenet": 49, "inception_v2": 69}


def path_of(name: str) -> Path:
    return FOLDER / f"light_{name}.onnx"


@pytest.mark.parametrize("name", NODES)
def test_nothing_remains(name: str) -> None:
    result = fold(path_of(name), prove=False)
    actions = [row.action for row in result.rows]
    assert len(actions) == NODES[name]
    assert all(action.startswith("folded into Conv ") for action in actions)
    assert export.find_nodes(result.model) == []


def test_what_remains_of_densenet_is_before_a_relu_and_behind_what_others_read() -> None:
    result = fold(path_of("densenet121"), prove=False)
    folded = [row for row in result.rows if row.action.startswith("folded into Conv")]
    merged = [row for row in result.rows if row.action.startswith("merged with Mul")]
    assert (len(folded), len(merged)) == (59, 62)
    assert all("behind: Relu" in row.reason for row in merged)
    assert not [row for row in folded if "with Mul" not in row.reason]
    assert len(export.find_nodes(result.model)) == 62


def test_none_remains_of_densenet_where_mul_and_add_take_them_in() -> None:
    result = fold(path_of("densenet121"), into_elementwise=True, prove=False)
    assert export.find_nodes(result.model) == []


def test_a_whole_network_is_proved() -> None:
    result = fold(path_of("shufflenet"))
    assert result
    assert result.proof is not None
    assert len([row for row in result.rows if row.error is not None]) > 40
