"""A run that was killed goes on where it was, and ends with the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_models import batch_norm_node, make_model
from safetensors.numpy import save_file

import cbn
from cbn.export.files import load
from cbn.export.recalibration.measure.checkpoint import Checkpoint, CheckpointError
from cbn.export.recalibration.measure.checkpoint_key import checkpoint_key
from cbn.export.recalibration.measure.observed import Observed

KEY = "model=1\ndata=2\nmethod=3"


def observed(seed, first_sample=0):
    generator = np.random.default_rng(seed)
    means, squares = generator.normal(size=(3, 4)), generator.uniform(size=(3, 4))
    return Observed.of_samples(means, squares, 7, first_sample)


def same(one, two):
    first, second = one.to_arrays(), two.to_arrays()
    return list(first) == list(second) and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.checkpoint"


def test_a_new_one_is_at_the_start_and_writes_nothing(path):
    with Checkpoint.open(path, KEY) as checkpoint:
        assert checkpoint.load() == (0, {})
        assert (checkpoint.stage, checkpoint.finished) == (0, {})
    assert not path.exists()


def test_what_was_saved_comes_back_to_the_bit(path):
    names = ["bn", "a/b/c:0", "ünïcode \n 名", ""]
    statistics = {name: observed(seed) for seed, name in enumerate(names)}
    one_sample = Observed.of_samples(np.ones((1, 2)), np.ones((1, 2)), 5)
    statistics["one sample"] = one_sample
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.save(11, statistics)
    done, found = Checkpoint.open(path, KEY).load()
    assert done == 11
    assert list(found) == list(statistics)
    assert all(same(found[name], statistics[name]) for name in statistics)


def test_stages_that_are_through_are_kept(path):
    first, second = {"a": observed(1)}, {"b": observed(2)}
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.save(4, first)
        checkpoint.finish_stage(first)
        checkpoint.save(2, second)
    again = Checkpoint.open(path, KEY)
    assert again.stage == 1
    assert again.load()[0] == 2
    assert same(again.load()[1]["b"], second["b"])
    assert same(again.finished["a"], first["a"])


def test_it_says_how_much_it_holds(path):
    checkpoint = Checkpoint.open(path, KEY)
    said = [checkpoint.summary]
    for step in (
        lambda: checkpoint.save(1, {}),
        lambda: checkpoint.save(4, {}),
        lambda: checkpoint.finish_stage({}),
        lambda: checkpoint.save(2, {}),
        lambda: checkpoint.finish_stage({}),
    ):
        step()
        said.append(checkpoint.summary)
    of_stages = ["1 stage", "1 stage and 2 batches of the next", "2 stages"]
    assert said == ["", "1 batch", "4 batches", *of_stages]


def test_it_is_written_when_the_last_write_is_old_enough(path):
    checkpoint = Checkpoint.open(path, KEY, interval=3600)
    checkpoint.save(1, {})
    assert not path.exists()
    eager = Checkpoint.open(path, KEY, interval=0)
    eager.save(2, {})
    assert Checkpoint.open(path, KEY).load() == (2, {})


def test_leaving_by_an_exception_writes(path):
    def interrupted():
        with Checkpoint.open(path, KEY, interval=3600) as checkpoint:
            checkpoint.save(3, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Checkpoint.open(path, KEY).load() == (3, {})


def test_what_the_caller_does_with_the_statistics_later_does_not_count(path):
    statistics = {"a": observed(1)}
    with Checkpoint.open(path, KEY, interval=3600) as checkpoint:
        checkpoint.save(1, statistics)
        statistics["b"] = observed(2)
    assert list(Checkpoint.open(path, KEY).load()[1]) == ["a"]


def test_remove_leaves_nothing(path):
    with Checkpoint.open(path, KEY, interval=0) as checkpoint:
        checkpoint.save(1, {})
        checkpoint.save(2, {})
        checkpoint.remove()
    assert list(path.parent.iterdir()) == []


def test_another_run_is_refused_by_what_differs(path):
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.save(1, {})
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"run\.checkpoint: .*run \(data differs\); give"):
        Checkpoint.open(path, KEY.replace("2", "9"))
    with pytest.raises(CheckpointError, match="model and method differ"):
        Checkpoint.open(path, "model=0\ndata=2\nmethod=0")
    assert path.read_bytes() == content


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(path, cut):
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.save(1, {"a": observed(1)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="not a checkpoint, or a damaged one"):
        Checkpoint.open(path, KEY)


def test_a_changed_byte_is_noticed(path):
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.save(1, {"a": observed(1)})
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a damaged checkpoint"):
        Checkpoint.open(path, KEY)


def test_every_changed_byte_is_noticed(path):
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.finish_stage({"a": observed(1)})
        checkpoint.save(12, {"b": observed(2)}, "trail")
    content = path.read_bytes()
    taken = []
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            Checkpoint.open(path, KEY)
            taken.append(place)
        except CheckpointError:
            pass
    assert taken == []


def test_the_trail_of_the_data_is_kept_from_stage_to_stage(path):
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.save(4, {}, "trail")
        checkpoint.finish_stage({})
        checkpoint.save(1, {})
    assert Checkpoint.open(path, KEY).trail == "trail"


def test_other_files_are_refused_and_left_alone(path):
    save_file({"weight": np.ones(3)}, path)
    with pytest.raises(CheckpointError, match="a safetensors file that is no checkpoint"):
        Checkpoint.open(path, KEY)
    path.write_text("my thesis")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Checkpoint.open(path, KEY)
    assert path.read_text() == "my thesis"


def test_a_place_that_cannot_be_written_is_an_error(path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        Checkpoint.open(path / "deeper", KEY)
    path.mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Checkpoint.open(path, KEY)


def model(value=1.0):
    arrays = {name: np.full(3, value, np.float32) for name in "sbmv"}
    return make_model([batch_norm_node()], arrays=arrays)


def test_the_key_tells_models_data_and_options_apart(tmp_path):
    options = {"method": "batch", "nodes": None}
    key = checkpoint_key(model(), "data", options)
    assert checkpoint_key(model(), "data", dict(reversed(options.items()))) == key
    others = [
        checkpoint_key(model(2.0), "data", options),
        checkpoint_key(model(), "other data", options),
        checkpoint_key(model(), "data", {**options, "method": "sequential"}),
    ]
    differing = [
        [line.partition("=")[0] for line in key.splitlines() if line not in other.splitlines()]
        for other in others
    ]
    assert differing == [["model"], ["data"], ["method"]]


@pytest.mark.parametrize("package", [cbn, onnxruntime], ids=lambda package: package.__name__)
def test_another_version_is_refused_by_name(path, monkeypatch, package):
    with Checkpoint.open(path, checkpoint_key(model(), "data", {})) as checkpoint:
        checkpoint.save(1, {})
    monkeypatch.setattr(package, "__version__", "999")
    with pytest.raises(CheckpointError, match=rf"\({package.__name__}'s version differs\)"):
        Checkpoint.open(path, checkpoint_key(model(), "data", {}))


def test_the_key_reads_weights_that_lie_beside_the_model(tmp_path):
    loaded = load(model())
    for value in loaded.graph.initializers.values():
        value.const_value = ir.Tensor(np.ones(3, np.float32), name=value.name)
    path = tmp_path / "model.onnx"
    ir.save(loaded, path, external_data="model.data", size_threshold_bytes=0)
    key = checkpoint_key(path, "data", {})
    content = bytearray((tmp_path / "model.data").read_bytes())
    content[2] ^= 1
    (tmp_path / "model.data").write_bytes(content)
    assert checkpoint_key(path, "data", {}) != key


RUN = """
import sys, time
import numpy as np
from cbn.export.recalibration.measure.checkpoint import Checkpoint
from cbn.export.recalibration.measure.observed import Observed

path, pause = sys.argv[1], float(sys.argv[2])
with Checkpoint.open(path, "key", interval=float(sys.argv[3])) as checkpoint:
    done, seen = checkpoint.load()
    for index in range(done, 40):
        x = np.random.default_rng(index).normal(index, 3, (5, 4))
        batch = {name: Observed.of_samples(x * scale, x**2, 9, 5 * index)
                 for name, scale in (("a", 1), ("b", 1 / 3))}
        seen = {name: seen[name] + batch[name] if seen else batch[name] for name in batch}
        checkpoint.save(index + 1, seen)
        print(index + 1, flush=True)
        time.sleep(pause)
print(done, *(o.to_arrays()[k].tobytes().hex() for o in seen.values() for k in o.to_arrays()))
"""


def start(path, pause, interval):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(path), str(pause), str(interval)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(path):
    process = start(path, 0, 1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    done, *numbers = out.splitlines()[-1].split()
    return int(done), numbers


@pytest.mark.parametrize(("number", "interval"), [(signal.SIGKILL, 0), (signal.SIGINT, 3600)])
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path, number, interval):
    started, whole = finish(tmp_path / "whole")
    assert started == 0
    path = tmp_path / "killed"
    with start(path, 0.02, interval) as process:
        while process.stdout.readline() != "12\n":
            assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        process.wait(timeout=30)
    assert process.returncode != 0
    started, resumed = finish(path)
    assert 12 <= started < 40
    assert resumed == whole


def test_a_kill_in_the_middle_of_a_write_leaves_the_last_state(path):
    with Checkpoint.open(path, KEY) as checkpoint:
        checkpoint.save(5, {"a": observed(1)})
    path.with_name(".run.checkpoint.partial").write_bytes(b"half of a new")
    checkpoint = Checkpoint.open(path, KEY, interval=0)
    assert checkpoint.load()[0] == 5
    checkpoint.save(6, {})
    assert [file.name for file in path.parent.iterdir()] == ["run.checkpoint"]
