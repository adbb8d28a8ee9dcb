"""Opening and writing models: what is accepted, and one clear error for what is not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from onnx import TensorProto, helper

from cbn.export.files import ModelError, load, save


@pytest.fixture
def proto() -> onnx.ModelProto:
    return onnx_models.plain_model(
        [onnx_models.plain_node()], onnx_models.named_parameters(100), shape=("N", 100, "H", "W")
    )


def external(proto: onnx.ModelProto, path: Path) -> Path:
    """The model in a file whose tensors lie in a file beside it."""
    onnx.save(
        proto,
        path,
        save_as_external_data=True,
        location=f"{path.name}.weights",
        size_threshold=0,
    )
    return path


def scale(model: ir.Model) -> np.ndarray:
    return model.graph.initializers["scale"].const_value.numpy()


SCALE = onnx_models.named_parameters(100)["scale"]


def test_every_accepted_kind_opens(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    for model in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), proto):
        np.testing.assert_array_equal(scale(load(model)), SCALE)
    text = tmp_path / "m.textproto"
    onnx.save(proto, text)
    np.testing.assert_array_equal(scale(load(text)), SCALE)


def test_an_open_model_comes_back_as_it_is(proto: onnx.ModelProto) -> None:
    opened = load(proto)
    assert load(opened) is opened


def test_another_type_is_a_type_error() -> None:
    with pytest.raises(
        TypeError, match=r"path, bytes, onnx\.ModelProto or onnx_ir\.Model, got builtins\.int"
    ):
        load(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 not a model at all", "not an ONNX model, or a truncated one"),
        (b"\x08\x07", "no graph or no opset import"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"m.onnx.*{message}"):
        load(path)


def test_every_truncation_is_noticed(proto: onnx.ModelProto, tmp_path: Path) -> None:
    content = proto.SerializeToString()
    for length in range(1, len(content)):
        with pytest.raises(ModelError, match="truncated"):
            load(content[:length])


def test_a_graph_that_reads_what_nothing_makes(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[2] = "none"
    with pytest.raises(ModelError, match="BatchNormalization '' reads 'none', which nothing makes"):
        load(proto)


def test_the_body_of_a_function_is_looked_at_too(proto: onnx.ModelProto) -> None:
    body = onnx.helper.make_node("Relu", ["none"], ["y"])
    imports = [onnx.helper.make_opsetid("", 15)]
    proto.functions.append(onnx.helper.make_function("local", "F", ["x"], ["y"], [body], imports))
    with pytest.raises(ModelError, match="Relu '' reads 'none', which nothing makes"):
        load(proto)


def test_nodes_that_wait_for_each_other(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "b"
    proto.graph.node.extend(
        [onnx.helper.make_node("Abs", ["y"], ["a"]), onnx.helper.make_node("Abs", ["a"], ["b"])]
    )
    with pytest.raises(ModelError, match="waits for its own result, in a cycle"):
        load(proto)


def test_a_cycle_through_a_subgraph(proto: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Abs", ["later"], ["t"])],
        "inner",
        [],
        [onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)],
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    choice = onnx.helper.make_node("If", ["yes"], ["i"], then_branch=inner, else_branch=inner)
    proto.graph.node.extend([choice, onnx.helper.make_node("Abs", ["i"], ["later"])])
    with pytest.raises(ModelError, match="in a cycle"):
        load(proto)


def test_nodes_in_another_order_are_no_cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "h"
    proto.graph.node.append(onnx.helper.make_node("Abs", ["x"], ["h"]))
    assert len(load(proto).graph) == 2


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("node", "'y' is made twice, by BatchNormalization '' and Abs 'again'"),
        ("initializer", "'scale' is made twice, by an initializer and an initializer"),
        ("input", "'x' is made twice, by a graph input and a graph input"),
        ("node over input", "'x' is made twice, by a graph input and Abs 'again'"),
    ],
)
def test_a_value_that_is_made_twice(proto: onnx.ModelProto, what: str, message: str) -> None:
    if what == "initializer":
        proto.graph.initializer.append(proto.graph.initializer[0])
    elif what == "input":
        proto.graph.input.append(proto.graph.input[0])
    else:
        name = "y" if what == "node" else "x"
        proto.graph.node.append(onnx.helper.make_node("Abs", ["x"], [name], name="again"))
    with pytest.raises(ModelError, match=message):
        load(proto)


def test_an_output_that_nothing_makes(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nowhere"
    with pytest.raises(ModelError, match="nothing makes the output 'nowhere'"):
        load(proto)


def test_an_operator_whose_name_is_no_text(proto: onnx.ModelProto) -> None:
    content = proto.SerializeToString().replace(b"BatchNormalization", b"BatchNormalizatio\xff")
    with pytest.raises(ModelError, match=r"no operator|not an ONNX model"):
        load(content)


def test_bytes_that_are_no_model() -> None:
    with pytest.raises(ModelError, match="the given bytes are not an ONNX model"):
        load(b"hello world")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


def test_external_data_is_found_beside_the_model(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = external(proto, tmp_path / "m.onnx")
    np.testing.assert_array_equal(scale(load(path)), SCALE)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(scale(load("m.onnx")), SCALE)


def test_external_data_that_is_missing(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = external(proto, tmp_path / "m.onnx")
    (tmp_path / "m.onnx.weights").unlink()
    with pytest.raises(ModelError, match=r"tensor 'scale'.*'m.onnx.weights', which does not exist"):
        load(path)


def test_external_data_that_is_too_short(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = external(proto, tmp_path / "m.onnx")
    os.truncate(tmp_path / "m.onnx.weights", 4)
    with pytest.raises(ModelError, match=r"too short: 4 bytes, where 400 are wanted from byte 0"):
        load(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_external_data_stays_in_the_model_folder(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "models"
    folder.mkdir()
    path = external(proto, folder / "m.onnx")
    moved = onnx.load(path, load_external_data=False)
    for tensor in moved.graph.initializer:
        tensor.external_data[0].value = location
    onnx.save(moved, path)
    monkeypatch.chdir(folder)
    for model in (path, "m.onnx"):
        with pytest.raises(ModelError, match="leaves the model's folder"):
            load(model)


def test_external_data_needs_the_path(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = external(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="give the model's path instead"):
        load(path.read_bytes())


def test_save_writes_what_load_reads(proto: onnx.ModelProto, tmp_path: Path) -> None:
    for name, model in (("a.onnx", proto), ("b.onnx", load(proto)), ("c.json", proto)):
        save(model, tmp_path / name)
        np.testing.assert_array_equal(scale(load(tmp_path / name)), SCALE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "c.json"]


def test_save_gives_a_new_file_the_usual_permissions(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    (tmp_path / "plain").touch()
    save(proto, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_save_brings_external_data_along(proto: onnx.ModelProto, tmp_path: Path) -> None:
    source = external(proto, tmp_path / "m.onnx")
    target = tmp_path / "elsewhere"
    target.mkdir()
    save(load(source), target / "copy.onnx")
    source.unlink()
    np.testing.assert_array_equal(scale(load(target / "copy.onnx")), SCALE)


def test_save_does_not_overwrite_weights_in_use(proto: onnx.ModelProto, tmp_path: Path) -> None:
    first = tmp_path / "m.onnx"
    save(load(external(proto, tmp_path / "source.onnx")), first)
    with pytest.raises(ModelError, match=r"m\.onnx\.data holds this model's own weights"):
        save(load(first), first)
    np.testing.assert_array_equal(scale(load(first)), SCALE)


def test_save_does_not_overwrite_the_weights_with_the_model(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    path = external(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="holds this model's own weights"):
        save(load(path), tmp_path / "m.onnx.weights")
    np.testing.assert_array_equal(scale(load(path)), SCALE)


def test_a_failed_save_leaves_nothing_and_keeps_the_old(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")

    def full_disk(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ModelError, match=r"m\.onnx: No space left on device"):
        save(proto, target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_save_to_no_folder_or_onto_one(proto: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        save(proto, tmp_path / "none" / "m.onnx")
    with pytest.raises(ModelError, match="it is a folder"):
        save(proto, tmp_path)
    with pytest.raises(TypeError, match="got str"):
        save("m.onnx", tmp_path / "m.onnx")  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_replaced(proto: onnx.ModelProto, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ModelError, match="it is a device, pipe or socket, not a file"):
        save(proto, pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def sparse(name: str) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [1], [2.0])
    return helper.make_sparse_tensor(
        values, helper.make_tensor("indices", TensorProto.INT64, [1], [1]), [3]
    )


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
def test_sparse_tensors_are_named(proto: onnx.ModelProto, where: str) -> None:
    graph = proto.graph
    if where == "subgraph":
        branch = helper.make_graph([], "branch", [], [])
        branch.node.add(op_type="Identity", input=["w"], output=["h"])
        graph.node.add(op_type="If", name="choice").attribute.append(
            helper.make_attribute("then_branch", branch)
        )
        graph = graph.node[-1].attribute[0].g
    if where == "attribute":
        graph.node.append(
            helper.make_node("Constant", [], ["w"], name="c", sparse_value=sparse("w"))
        )
        named = "the attribute sparse_value of Constant 'c'"
    else:
        graph.sparse_initializer.append(sparse("w"))
        named = "the initializer 'w'"
    with pytest.raises(ModelError, match=f"sparse tensors are not supported, and {named} is one"):
        load(proto)
