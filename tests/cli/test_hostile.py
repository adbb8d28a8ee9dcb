"""Broken and hostile files: one line on stderr, exit code 2, nothing written, for every command."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import batch_norm_node, make_model, parameters, single

COMMANDS = ("inspect", "lint", "check", "freeze", "lower", "fold")
WRITERS = ("freeze", "lower", "fold")


def truncated() -> bytes:
    content = single().SerializeToString()
    return content[: len(content) * 2 // 3]


def cycle() -> bytes:
    nodes = [batch_norm_node("b", "y"), helper.make_node("Abs", ["y"], ["b"])]
    return make_model(nodes).SerializeToString()


def dangling() -> bytes:
    return make_model([batch_norm_node("nowhere")]).SerializeToString()


def twice() -> bytes:
    return make_model(
        [batch_norm_node(), helper.make_node("Abs", ["x"], ["y"])]
    ).SerializeToString()


def outside() -> bytes:
    """External data that is to be read from above the model's folder."""
    model = single()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../../etc/passwd")
    return model.SerializeToString()


def absurd_tensor() -> bytes:
    """A few bytes that declare terabytes."""
    model = single()
    model.graph.initializer[0].dims[:] = [2**40]
    return model.SerializeToString()


def absurd_constant() -> bytes:
    dims = numpy_helper.from_array(np.array([2**29]), "dims")
    nodes = [
        helper.make_node("ConstantOfShape", ["dims"], ["ones"]),
        batch_norm_node(inputs=["ones", "ones", "ones", "ones"]),
    ]
    model = make_model(nodes, arrays={})
    model.graph.initializer.append(dims)
    return model.SerializeToString()


def negative_dims() -> bytes:
    model = single()
    model.graph.initializer[0].dims[:] = [-3]
    return model.SerializeToString()


def wrong_attribute() -> bytes:
    model = single()
    model.graph.node[0].attribute.append(helper.make_attribute("epsilon", "small"))
    return model.SerializeToString()


def recursive_function() -> bytes:
    call = helper.make_node("F", ["x"], ["y"], domain="local")
    body = helper.make_function(
        "local", "F", ["x"], ["y"], [call], [helper.make_opsetid("local", 1)]
    )
    nodes = [helper.make_node("F", ["x"], ["h"], domain="local"), batch_norm_node("h")]
    return make_model(nodes, functions=[body]).SerializeToString()


HOSTILE = {
    made.__name__: made
    for made in (
        truncated,
        cycle,
        dangling,
        twice,
        outside,
        absurd_tensor,
        absurd_constant,
        negative_dims,
        wrong_attribute,
    )
}


def refused(invoke, verb, path, folder):
    """Run a command on a file; it must end in one line, and leave nothing behind."""
    before = path.read_bytes()
    output = ["-o", folder / "out.onnx"] if verb in WRITERS else []
    shown = invoke(verb, path, *output)
    assert shown.exit_code == 2, shown.output
    (line,) = shown.stderr.splitlines()
    assert line.startswith("cbn: error: ")
    assert path.name in line
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert path.read_bytes() == before
    return line


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_one_clear_error(invoke, tmp_path, verb, name):
    path = tmp_path / "hostile.onnx"
    path.write_bytes(HOSTILE[name]())
    refused(invoke, verb, path, tmp_path)


@pytest.mark.parametrize("verb", ["check", *WRITERS])
def test_an_input_of_absurd_size(invoke, tmp_path, verb):
    path = tmp_path / "hostile.onnx"
    onnx.save(single(training=verb != "fold", shape=(2**20, 3, 2**20)), path)
    if verb == "fold":
        nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), batch_norm_node("h")]
        arrays = {**parameters(), "w": np.ones((3, 3, 1), "float32")}
        onnx.save(make_model(nodes, arrays=arrays, shape=(2**20, 3, 2**20)), path)
    assert "too large to fill with random numbers" in refused(invoke, verb, path, tmp_path)


@pytest.mark.parametrize("verb", WRITERS)
def test_parameters_of_the_wrong_shape(invoke, tmp_path, verb):
    path = tmp_path / "hostile.onnx"
    onnx.save(single(arrays={**parameters(), "m": np.zeros(2, "float32")}), path)
    assert "expected mean of shape [3], got [2]" in refused(invoke, verb, path, tmp_path)


def test_a_function_that_calls_itself(invoke, tmp_path):
    path = tmp_path / "hostile.onnx"
    path.write_bytes(recursive_function())
    for verb in COMMANDS:
        refused(invoke, verb, path, tmp_path)


def test_every_prefix_of_a_file_ends_well(invoke, tmp_path):
    content = single().SerializeToString()
    path = tmp_path / "hostile.onnx"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refused(invoke, "fold", path, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs resource limits that bind")
def test_memory_stays_bounded(command, tmp_path):
    path = tmp_path / "hostile.onnx"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for made in (absurd_tensor, absurd_constant):
        path.write_bytes(made())
        for verb in ("inspect", "fold"):
            assert (
                command(verb, path, *(["-o", tmp_path / "o.onnx"] * (verb == "fold"))).exit_code
                == 2
            )
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert max(after - before, 0) < 1 << 20  # in KiB: a gigabyte, of terabytes declared


RUN_AND_TELL = """
import sys
import onnxruntime
from cbn.__main__ import main

run = onnxruntime.InferenceSession.run

def tell(*arguments):
    print("running", flush=True)
    return run(*arguments)

onnxruntime.InferenceSession.run = tell
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a signal to one process")
def test_ctrl_c_ends_a_loop_without_an_end(environment, tmp_path):
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", [a], [b]) for a, b in (("go", "on"), ("old", "new"))],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("old", TensorProto.FLOAT, None),
        ],
        [value("on", TensorProto.BOOL, []), value("new", TensorProto.FLOAT, None)],
    )
    nodes = [
        batch_norm_node(y="h", training=True),
        helper.make_node("Loop", ["trips", "true", "h"], ["y"], body=body),
    ]
    arrays = {**parameters(), "trips": np.array(2**62), "true": np.array(True)}
    onnx.save(make_model(nodes, arrays=arrays), tmp_path / "loop.onnx")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_TELL, "freeze", "loop.onnx", "-o", "out.onnx"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "running\n"
        time.sleep(0.3)  # from here into the loop
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, "cbn: interrupted\n")
    assert not (tmp_path / "out.onnx").exists()
