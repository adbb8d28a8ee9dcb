"""A checkpoint goes on with the data that it was made of, and with no others."""

from __future__ import annotations

import numpy as np
import pytest
import recalibration_models as models

from cbn.export.inputs import model_inputs
from cbn.export.recalibration.data.sources import open_source
from cbn.export.recalibration.measure.checkpoint import Checkpoint, CheckpointError
from cbn.export.recalibration.measure.checkpoint_key import checkpoint_key
from cbn.export.recalibration.measure.measuring import Measuring
from cbn.export.recalibration.measure.targets import choose_targets

METHODS = pytest.mark.parametrize("method", ["batch", "sequential"])
BATCHES = models.cut(models.images(24), (4,) * 6)


def measured(path, data, method, stop=None):
    """Statistics of a run with a checkpoint, which is interrupted after `stop` batches."""
    calls = []

    def progress(*step):
        calls.append(step)
        if len(calls) == stop:
            raise KeyboardInterrupt

    targets = choose_targets(models.two_layers())
    source = open_source(data, model_inputs(targets.model))
    key = checkpoint_key(targets.model, source.fingerprint(), {"method": method})
    with Checkpoint.open(path, key) as checkpoint:
        measuring = Measuring(method, "cpu", 1, progress=progress)
        found = measuring.measure(targets, source, checkpoint=checkpoint)
        checkpoint.remove()
    return {n: [a.tobytes() for a in seen.to_arrays().values()] for n, seen in found.items()}


def changed(number):
    """The batches, one of which has another content."""
    return [batch * 5 if index == number else batch for index, batch in enumerate(BATCHES)]


CASES = [("batch", 3), ("batch", 6), ("sequential", 3), ("sequential", 6), ("sequential", 8)]
"""Method, and after how many batches it is interrupted: within a stage, and at its end."""


@pytest.mark.parametrize(("method", "stop"), CASES)
def test_the_same_iterable_goes_on_to_the_same_bits(tmp_path, method, stop):
    whole = measured(tmp_path / "whole", BATCHES, method)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "run", BATCHES, method, stop)
    assert measured(tmp_path / "run", BATCHES, method) == whole


@pytest.mark.parametrize(("method", "stop"), CASES)
def test_an_iterable_that_begins_alike_is_refused(tmp_path, method, stop):
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "run", BATCHES, method, stop)
    content = (tmp_path / "run").read_bytes()
    for other in (changed(2), changed(1), BATCHES[:2]):
        with pytest.raises(CheckpointError, match=r"run: .* on other data: the batches .* differ"):
            measured(tmp_path / "run", other, method)
    assert (tmp_path / "run").read_bytes() == content


@METHODS
def test_batches_that_were_not_read_yet_may_be_others(tmp_path, method):
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "run", BATCHES, method, 3)
    found = measured(tmp_path / "run", changed(4), method)
    assert found == measured(tmp_path / "whole", changed(4), method)


@METHODS
@pytest.mark.parametrize("form", [iter, np.concatenate], ids=["generator", "array"])
def test_generators_and_arrays_are_told_before_anything_is_read(tmp_path, method, form):
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "run", form(BATCHES), method, 1)
    with pytest.raises(CheckpointError, match=r"the checkpoint of another run \(data differs\)"):
        measured(tmp_path / "run", form(changed(5)), method)
