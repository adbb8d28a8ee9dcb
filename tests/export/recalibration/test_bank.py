"""A statistics bank: out of a model, into a file, back into the same model, and into no other."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from onnx_models import batch_norm_node, make_model, parameters, run, single
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import cbn
from cbn import export
from cbn.export.recalibration import Observed, StatisticsBank

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


def other_statistics(dtype="float32", seed=3):
    generator = np.random.default_rng(seed)
    return {
        "m": generator.normal(size=3).astype(dtype),
        "v": generator.uniform(1, 2, 3).astype(dtype),
    }


def night(dtype="float32", **kwargs):
    """`single` with other statistics."""
    arrays = {**parameters(dtype=dtype), **other_statistics(dtype)}
    return single(dtype=dtype, arrays=arrays, **kwargs)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "night.safetensors"
    StatisticsBank.of_model(night(), "night").save(target)
    return target


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_statistics_come_back_to_the_bit(tmp_path, dtype):
    StatisticsBank.of_model(night(dtype)).save(tmp_path / "s.safetensors")
    given = StatisticsBank.load(tmp_path / "s.safetensors").apply(single(dtype=dtype))
    assert given
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(dtype)
    (got,) = run(ir.to_proto(given.model), x).values()
    (expected,) = run(night(dtype), x).values()
    np.testing.assert_array_equal(got, expected)


def test_weights_stay_what_they_were():
    before = export.load(single())
    after = StatisticsBank.of_model(night()).apply(before).model
    for name in "sb":
        weight = after.graph.initializers[name].const_value
        assert weight is before.graph.initializers[name].const_value


def test_the_file_says_what_it_is(path):
    with safe_open(path, framework="numpy") as archive:
        about = archive.metadata()
    assert about["domain"] == "night"
    assert about["cbn_version"] == cbn.__version__
    assert "population variance (ddof=0)" in about["convention"]
    assert len(about["fingerprint"]) == 64
    assert json.loads(about["counts"]) == {"bn_y": [None, None]}
    arrays = load_file(path)
    assert set(arrays) == {"bn_y.running_mean", "bn_y.running_var"}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(arrays["bn_y.running_var"], other_statistics()["v"])


def test_what_is_loaded_is_what_was_saved(path):
    made, found = StatisticsBank.of_model(night(), "night"), StatisticsBank.load(path)
    assert (found.domain, found.fingerprint) == (made.domain, made.fingerprint)
    assert found.written_by == cbn.__version__
    assert found.statistics.keys() == made.statistics.keys()


def test_counts_are_kept(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 3))
    seen = Observed.of_samples(x, np.zeros_like(x), 5)
    bank = StatisticsBank.of_model(night(), observed={"bn_y": seen})
    bank.save(tmp_path / "s.safetensors")
    found = StatisticsBank.load(tmp_path / "s.safetensors").statistics["bn_y"]
    assert (found.count, found.samples) == (30, 6)


def test_a_whole_network_goes_there_and_back(tmp_path):
    model = export.load(DIGITS / "digits.onnx")
    StatisticsBank.of_model(model).save(tmp_path / "s.safetensors")
    bank = StatisticsBank.load(tmp_path / "s.safetensors")
    given = bank.apply(DIGITS / "digits_training.onnx")
    assert [row.action for row in given.rows] == ["given statistics"] * 5
    assert {norm.mode for norm in export.find_nodes(given.model)} == {"eval"}
    stored = {norm.name: norm.var.array for norm in export.find_nodes(model)}
    for norm in export.find_nodes(given.model):
        np.testing.assert_array_equal(norm.var.array, stored[norm.name])


def test_nodes_that_share_their_statistics_stand_once(tmp_path):
    nodes = [batch_norm_node("x", "h"), batch_norm_node("h", "y")]
    model = make_model(nodes, arrays=parameters())
    bank = StatisticsBank.of_model(model)
    assert list(bank.statistics) == ["bn_h"]
    rows = bank.apply(model).rows
    assert [row.name for row in rows] == ["bn_h", "bn_y"]
    assert rows[1].reason == "shares its statistics with 'bn_h'"


def foreign(nodes=None, arrays=None):
    """A model with a node bn_y that is not `single`, and perhaps another."""
    nodes = nodes or [batch_norm_node("x", "h"), helper.make_node("Relu", ["h"], ["y"])]
    nodes[0].name = "bn_y"
    return make_model(nodes, arrays=arrays or {**parameters(), **other_statistics(seed=5)})


def test_nodes_that_swapped_their_names_are_another_model():
    def pair(*names):
        nodes = [
            batch_norm_node("x", "h"),
            batch_norm_node("h", "y", inputs=("s", "b", "m2", "v2")),
        ]
        for node, name in zip(nodes, names, strict=True):
            node.name = name
        more = {f"{name}2": array for name, array in other_statistics().items()}
        return make_model(nodes, arrays={**parameters(), **more})

    bank = StatisticsBank.of_model(pair("first", "second"))
    assert bank.apply(pair("first", "second"))
    with pytest.raises(export.ModelError, match=r"another model: .*differ"):
        bank.apply(pair("second", "first"))


def test_another_model_is_refused_with_what_differs():
    bank = StatisticsBank.of_model(night())
    with pytest.raises(export.ModelError, match="another model: its nodes are alike, and what"):
        bank.apply(foreign())
    scaled = {**parameters(), "s": np.ones(3, np.float32)}
    with pytest.raises(export.ModelError, match="in or before its node 'bn_y' differ"):
        bank.apply(single(arrays=scaled))
    nameless = make_model([batch_norm_node("x", "z")], outputs=("z",))
    with pytest.raises(export.ModelError, match="another model: it has no node 'bn_y'"):
        bank.apply(nameless)


def test_force_goes_by_name_and_says_so():
    bank = StatisticsBank.of_model(night())
    given = bank.apply(foreign(), force=True)
    assert given
    assert given.notes[-1].startswith("forced: ")
    (norm,) = export.find_nodes(given.model)
    np.testing.assert_array_equal(norm.var.array, other_statistics()["v"])


def test_force_says_what_has_no_partner():
    arrays = {**parameters(), "m2": np.zeros(3, np.float32), "v2": np.ones(3, np.float32)}
    nodes = [
        batch_norm_node("x", "h"),
        batch_norm_node("h", "y", inputs=("s", "b", "m2", "v2")),
    ]
    nodes[1].name = "other"
    given = StatisticsBank.of_model(night()).apply(foreign(nodes, arrays), force=True)
    assert not given
    assert [row.ok for row in given.rows] == [True, False]
    assert given.rows[1].reason == "the file has no statistics for it"
    both = StatisticsBank.of_model(foreign(nodes, arrays))
    given = both.apply(night(), force=True)
    assert [(row.name, row.reason) for row in given.rows if not row.ok] == [
        ("other", "the model has no such node")
    ]


def test_force_takes_no_other_number_of_channels():
    wide = make_model([batch_norm_node()], arrays=parameters(4), shape=("N", 4, "L"))
    with pytest.raises(export.ModelError, match="it has 4 channels, its statistics 3"):
        StatisticsBank.of_model(night()).apply(wide, force=True)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_blend_is_the_weighted_mean_of_means_and_variances(weight):
    day, dark = StatisticsBank.of_model(single(), "day"), StatisticsBank.of_model(night(), "night")
    found = day.blend(dark, weight).statistics["bn_y"]
    one, two = parameters(), other_statistics()
    for name, got in (("m", found.mean), ("v", found.var)):
        expected = (1 - weight) * one[name].astype(float) + weight * two[name].astype(float)
        np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)


def test_a_blend_says_what_it_is_made_of():
    day, dark = StatisticsBank.of_model(single(), "day"), StatisticsBank.of_model(night())
    assert day.blend(dark, 0.25).domain == "0.75 day + 0.25 unnamed"


def test_a_prior_is_a_weight_by_samples():
    x = np.random.default_rng(0).normal(size=(6, 3))
    seen = Observed.of_samples(x, np.zeros_like(x), 5)
    bank = StatisticsBank.of_model(night(), observed={"bn_y": seen})
    assert bank.share_beside(6) == pytest.approx(0.5, abs=1e-15)
    assert bank.share_beside(0) == 1
    with pytest.raises(export.ModelError, match="a prior needs the number of samples"):
        StatisticsBank.of_model(night()).share_beside(6)


def test_what_cannot_be_blended():
    bank = StatisticsBank.of_model(single())
    with pytest.raises(ValueError, match=r"expected a weight from 0 to 1, got 1\.5"):
        bank.blend(bank, 1.5)
    with pytest.raises(export.ModelError, match="the second file is of another model"):
        bank.blend(StatisticsBank.of_model(foreign()), 0.5)


def test_statistics_that_nothing_is_normalized_with():
    broken = {**parameters(), "v": np.array([1, np.nan, 1], np.float32)}
    with pytest.raises(export.ModelError, match="'bn_y' are not finite"):
        StatisticsBank.of_model(single(arrays=broken))


def test_an_older_file_is_replaced_whole_or_not_at_all(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(export.ModelError, match="No space"):
        StatisticsBank.of_model(single()).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_file_has_the_rights_that_files_have(path):
    plain = path.parent / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("target", ["none/s.safetensors", "."])
def test_where_it_cannot_be_written(tmp_path, target):
    with pytest.raises(export.ModelError, match="cannot write"):
        StatisticsBank.of_model(single()).save(tmp_path / target)


def test_files_that_are_no_bank(tmp_path, path):
    with pytest.raises(export.ModelError, match="no such file"):
        StatisticsBank.load(tmp_path / "none.safetensors")
    with pytest.raises(export.ModelError, match="no file of statistics"):
        StatisticsBank.load(DIGITS / "digits.safetensors")
    for length in (0, 4, 100, path.stat().st_size - 8):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(path.read_bytes()[:length])
        with pytest.raises(export.ModelError, match=r"not a \.safetensors file, or a damaged one"):
            StatisticsBank.load(cut)


@pytest.mark.parametrize(
    ("changed", "arrays", "message"),
    [
        ({"format_version": "2"}, {}, "expected format version 1, got 2"),
        ({"counts": "[]"}, {}, "damaged"),
        ({"counts": "{}"}, {}, "it holds no statistics"),
        ({"nodes": '[["bn_y"]]'}, {}, "damaged"),
        ({"counts": '{"other": [null, null]}'}, {}, "damaged"),
        ({}, {"bn_y.running_mean": np.zeros(3, np.float32)}, "as float64 of one shape"),
        ({}, {"bn_y.running_mean": np.zeros(2)}, "as float64 of one shape"),
        ({}, {"bn_y.running_var": -np.ones(3)}, "a variance is negative"),
    ],
)
def test_damaged_content(path, changed, arrays, message):
    with safe_open(path, framework="numpy") as archive:
        about = archive.metadata()
    save_file({**load_file(path), **arrays}, path, {**about, **changed})
    with pytest.raises(export.ModelError, match=message):
        StatisticsBank.load(path)
