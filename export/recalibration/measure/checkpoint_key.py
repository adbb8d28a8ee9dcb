"""What tells a run from others: the model, the data, the options and the versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnxruntime

import cbn

from ...files import ModelLike, load
from ...soundness import every_graph

__all__ = ["checkpoint_key", "difference"]


def checkpoint_key(model: ModelLike, data: str, options: Mapping[str, Any]) -> str:
    """Tell a run by what decides its result.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        Its nodes and the content of its weights count, also of those in files beside it.
    data : str
        ``fingerprint()`` of the source.
    options : mapping
        What else decides the result (method, nodes, batch size, provider, threads), with values
        that JSON holds. Each is a part of the key of its own, so that an error can name it.

    Returns
    -------
    str
        ``name=digest`` of the model, the data and each option, one a line, and the versions of
        cbn and onnxruntime, which decide the bits too.
    """
    parts = {
        "model": _model_digest(load(model)),
        "data": _digest(data),
        "cbn's version": cbn.__version__,
        "onnxruntime's version": onnxruntime.__version__,
    }
    parts |= {name: _digest(json.dumps(options[name], sort_keys=True)) for name in sorted(options)}
    return "\n".join(f"{name}={digest}" for name, digest in parts.items())


def difference(stored: str, mine: str) -> str:
    """Say which parts of two keys differ, such as ``data and method differ``."""
    one, two = (
        dict(line.partition("=")[::2] for line in key.splitlines()) for key in (stored, mine)
    )
    differing = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    return f"{' and '.join(differing)} differ{'s' if len(differing) == 1 else ''}"


def _model_digest(model: ir.Model) -> str:
    digest = hashlib.sha256()
    for graph in every_graph(model):
        for value in (*graph.inputs, *graph.outputs):
            digest.update(f"{value.name} {value.dtype} {value.shape}\n".encode())
        for name, value in graph.initializers.items():
            tensor = value.const_value
            digest.update(f"{name}\n".encode())
            if tensor is not None:
                digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(_content(tensor))
        for node in graph:
            digest.update(ir.to_proto(node).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _content(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return tensor.tobytes()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
