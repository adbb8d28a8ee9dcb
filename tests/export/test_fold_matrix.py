"""Each small graph of the matrix folds or stays as its float64 evaluation says, and stays right."""

from __future__ import annotations

import folding_cases
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import plain_onnx
import pytest
from folding_cases import Case
from folding_matrix import CASES

from cbn import export
from cbn.export.folding import fold

RUNS = ("float32",)  # what onnxruntime's CPU provider has convolutions for


def test_the_matrix_is_large_and_its_names_differ() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_folds_exactly_when_the_numbers_allow_it(case: Case) -> None:
    before = folding_cases.build(case)
    result = fold(before, clone=case.clone, prove=False)
    row = result.rows[0]
    assert row.changed == folding_cases.should_fold(case), row
    assert row.changed or row.reason
    if not row.changed:
        return
    assert export.find_nodes(result.model) == []
    after = ir.to_proto(result.model)
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    if case.opset > 1:  # which has no shape inference, and the checker wants shapes
        stated = onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
        onnx.checker.check_model(stated, full_check=True)
    _check_close(case, before, after)


def _check_close(case: Case, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Each new constant was rounded once: the outputs moved by no more than that may."""
    x = folding_cases.inputs(case)
    unit = float(ml_dtypes.finfo(folding_cases.TYPES[case.dtype]).eps) / 2
    wanted = plain_onnx.evaluate(before, x)
    found = plain_onnx.evaluate(after, x)
    sizes = plain_onnx.evaluate(after, x, magnitudes=True)
    exact = 16 * np.finfo(np.float64).eps  # of the sums in float64 on both sides
    terms = plain_onnx.evaluate(before, x, magnitudes=True)
    for name, value in wanted.items():
        # Along a path lie at most two new constants: a weight and a border or an Add.
        bound = 2 * unit * sizes[name] * (1 + unit) + exact * (sizes[name] + terms[name])
        assert (np.abs(found[name] - value) <= bound).all(), name
    if case.dtype in RUNS and case.opset >= 7:
        ran = _run(after, x)
        for name, value in found.items():
            assert (np.abs(ran[name] - value) <= 64 * 2 * unit * sizes[name]).all(), name


def _run(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))
