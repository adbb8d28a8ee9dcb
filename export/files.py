"""Open and write ONNX models: every door of the package takes what ``load`` takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from .soundness import check_definitions, check_graphs, every_graph, first_sparse
from .whole_file import WriteError, obstacle, whole_file

__all__ = ["LARGEST_INLINE", "ModelError", "ModelLike", "load", "save"]

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model

# What onnx-ir warns of in broken graphs is raised here; it still reaches a logger set up for it.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())

LARGEST_INLINE = 1_900_000_000
"""Bytes of weights that go into one protobuf message, which may be 2 GiB with the graph."""


class ModelError(ValueError):
    """A model cannot be read, written or used as asked; the message names the thing."""


def load(model: ModelLike) -> ir.Model:
    """Open a model.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        A file (protobuf, or onnx's text and JSON formats by their extension), its content, or a
        model in memory. An ``onnx_ir.Model`` comes back as it is, so clone it before changing it.

    Returns
    -------
    onnx_ir.Model
        External data is mapped from the disk when it is first read, not before.

    Raises
    ------
    ModelError
        When the file is missing, truncated, not ONNX or holds sparse tensors, its graph reads what
        nothing makes, makes a value twice or goes in a circle, or its external data is missing,
        too short or outside the model's folder.
    TypeError
        When `model` is none of the accepted types.
    """
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return _from_proto(model, "the given ModelProto", folder=None)
    if isinstance(model, bytes | bytearray | memoryview):
        return _from_proto(_parse(bytes(model)), "the given bytes", folder=None)
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        return _from_proto(_read(path), str(path), folder=path.absolute().parent)
    raise TypeError(
        "expected a model as a path, bytes, onnx.ModelProto or onnx_ir.Model, "
        f"got {type(model).__module__}.{type(model).__qualname__}"
    )


def save(model: onnx.ModelProto | ir.Model, path: str | os.PathLike[str]) -> None:
    """Write a model, whole or not at all.

    A model that came with external data, or that is too large for one protobuf message, gets its
    tensors in ``<name>.data`` beside it.

    Parameters
    ----------
    model : onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    path : str or os.PathLike
        The target. Its extension chooses the format, as for ``onnx.save``.

    Raises
    ------
    ModelError
        When the target cannot be written, or would replace the file that holds the model's own
        external data. Nothing is left behind and an older target stays as it was.
    """
    if not isinstance(model, onnx.ModelProto | ir.Model):
        raise TypeError(
            f"expected an onnx.ModelProto or onnx_ir.Model to save, got {type(model).__name__}"
        )
    if reason := obstacle(path):
        raise ModelError(f"cannot write {path}: {reason}")
    target = Path(os.path.realpath(path))
    data_name = f"{target.name}.data"
    opened = load(model)
    external = [t for _, t in _tensors(opened) if isinstance(t, ir.ExternalTensor)]
    for mine in (target, target.parent / data_name):
        if any(_same_file(tensor.path, mine) for tensor in external):
            raise ModelError(
                f"cannot write {path}: {mine.name} holds this model's own weights; "
                "save under another name"
            )
    try:
        with whole_file(path) as written:
            if external or sum(t.nbytes for _, t in _tensors(opened)) > LARGEST_INLINE:
                ir.save(_inline_attributes(opened.clone()), written, external_data=data_name)
            elif isinstance(model, onnx.ModelProto):
                onnx.save(model, written)
            else:
                ir.save(opened, written)
    except WriteError as error:
        raise ModelError(str(error)) from error


def weight_files(model: ModelLike) -> list[Path]:
    """Return the files beside a model that hold its external data."""
    tensors = (tensor for _, tensor in _tensors(load(model)))
    return sorted({Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)})


def _read(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path} is a folder, expected an ONNX file")
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"{path} is empty, expected an ONNX file")
        return onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ModelError:
        raise
    except Exception as error:  # each format's parser has an error class of its own
        raise ModelError(f"{path}: not an ONNX model, or a truncated one ({error})") from error


def _parse(content: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's error class differs between its implementations
        raise ModelError(
            f"the given bytes are not an ONNX model, or a truncated one ({error})"
        ) from error


def _from_proto(proto: onnx.ModelProto, name: str, folder: Path | None) -> ir.Model:
    # protobuf reads many other files without complaint; a model has both of these.
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(
            f"{name}: not an ONNX model, or a truncated one (it has no graph or no opset import)"
        )
    for graph in (proto.graph, *proto.functions):
        if sparse := first_sparse(graph):
            raise ModelError(f"{name}: sparse tensors are not supported, and {sparse} is one")
    try:
        check_definitions(proto.graph)
        model = ir.from_proto(proto)
        check_graphs(model)
        for owner, tensor in _tensors(model):
            if any(isinstance(dim, int) and dim < 0 for dim in tensor.shape):
                raise ValueError(f"tensor {owner!r} has a negative size: {list(tensor.shape)}")
            if isinstance(tensor, ir.ExternalTensor):
                _locate(tensor, owner, name, folder)
    except ModelError:
        raise
    except Exception as error:  # onnx-ir lets through whatever a broken graph raises
        raise ModelError(f"{name}: broken ONNX graph: {error}") from error
    return model


def _locate(tensor: ir.ExternalTensor, owner: str, name: str, folder: Path | None) -> None:
    """Point a tensor at its data file, or say what is wrong with it."""
    where = f"{name}: tensor {owner!r} keeps its data in {str(tensor.location)!r}"
    if folder is None:
        raise ModelError(f"{where}, which cannot be found from here: give the model's path instead")
    # Always a real folder: onnx-ir checks nothing when this is empty.
    tensor.base_dir = folder
    root, path = Path(os.path.realpath(folder)), Path(os.path.realpath(tensor.path))
    if not path.is_relative_to(root):
        raise ModelError(f"{where}, which leaves the model's folder {root}")
    if not path.is_file():
        raise ModelError(f"{where}, which does not exist in {root}")
    offset, length = tensor.offset or 0, tensor.length or tensor.nbytes
    if offset < 0 or length < tensor.nbytes or path.stat().st_size < offset + length:
        raise ModelError(
            f"{where}, which is too short: {path.stat().st_size} bytes, "
            f"where {tensor.nbytes} are wanted from byte {offset}"
        )


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every stored tensor with its name: initializers and attributes, subgraphs and functions."""
    for graph in every_graph(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name or "", value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type is ir.AttributeType.TENSOR:
                    yield node.outputs[0].name or attribute.name, attribute.as_tensor()
                elif attribute.type is ir.AttributeType.TENSORS:
                    for tensor in attribute.as_tensors():
                        yield attribute.name, tensor


def _inline_attributes(model: ir.Model) -> ir.Model:
    """Bring tensors of attributes into memory: onnx-ir moves initializers alone."""
    for graph in every_graph(model):
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type is ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = attribute.as_tensor()
                    if isinstance(tensor, ir.ExternalTensor):
                        inline = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
                        node.attributes[name] = ir.AttrTensor(name, inline)
    return model


def _same_file(first: str, second: Path) -> bool:
    return second.exists() and os.path.exists(first) and os.path.samefile(first, second)
