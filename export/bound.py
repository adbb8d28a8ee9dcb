"""Sessions whose inputs and outputs stay on the device that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .files import ModelError, ModelLike
from .placement import CUDA
from .sessions import Providers, make_session, provider_in_use, run_error

import onnxruntime  # isort: skip  # sessions says what to install where it is missing

from .running import as_taken, run_bound  # isort: skip  # the same

__all__ = ["BoundSession"]


class BoundSession:
    """A model with its inputs bound once, to be run many times: nothing is copied between runs.

    Inputs and outputs are in the memory of the device that the nodes run on: that of the GPU with
    CUDA, else that of the CPU. The outputs of a run are written over those of the one before.

    Parameters
    ----------
    model : str, os.PathLike, bytes, onnx.ModelProto or onnx_ir.Model
        The model; it is not changed.
    feeds : dict of str to numpy.ndarray or onnxruntime.OrtValue
        Every input. An array is copied to the device, here and never again; an OrtValue is used
        where it lies, and seen to change when its owner changes it.
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
        As for ``make_session``.
    optimize : bool, default: True
    num_threads : int, optional
        As for ``make_session``.

    Raises
    ------
    ProviderError, ModelError
        As ``make_session``.
    ValueError
        When inputs are missing or unknown.
    TypeError
        When one is neither an array nor an OrtValue, or an array of no number type.

    Examples
    --------
    >>> import cbn, numpy as np
    >>> from cbn import export
    >>> from cbn.export.bound import BoundSession
    >>> model = export.to_onnx(cbn.BatchNorm1d(3).eval())
    >>> bound = BoundSession(model, {"x": np.ones((2, 3), np.float32)})
    >>> bound.run()
    >>> bound.results()["y"].shape
    (2, 3)
    """

    def __init__(
        self,
        model: ModelLike,
        feeds: Mapping[str, Any],
        providers: Providers = "cpu",
        *,
        optimize: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.session = make_session(model, providers, optimize=optimize, num_threads=num_threads)
        self.provider = provider_in_use(self.session)
        self._device = "cuda" if CUDA in self.provider else "cpu"
        options = self.session.get_provider_options().get(CUDA, {})
        self._device_id = int(options.get("device_id", 0)) if self._device == "cuda" else 0
        known = [value.name for value in self.session.get_inputs()]
        # An initializer that is an input too may be left as it is.
        needed = set(known) - {v.name for v in self.session.get_overridable_initializers()}
        if not needed <= set(feeds) <= set(known):
            raise ValueError(f"expected the inputs {known}, got {list(feeds)}")
        self._inputs = {name: self._placed(name, value) for name, value in feeds.items()}
        self._outputs = [value.name for value in self.session.get_outputs()]
        self._ran = False
        self._bind()

    @property
    def device(self) -> str:
        """Where inputs and outputs are: ``"cpu"``, or ``"cuda:0"`` and so on."""
        return "cpu" if self._device == "cpu" else f"cuda:{self._device_id}"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The inputs by name, OrtValues."""
        return MappingProxyType(self._inputs)

    @property
    def outputs(self) -> Mapping[str, Any]:
        """The outputs of the last run by name, OrtValues on the device; empty before the first."""
        if not self._ran:
            return MappingProxyType({})
        return MappingProxyType(dict(zip(self._outputs, self._binding.get_outputs(), strict=True)))

    def run(self, *, wait: bool = True) -> None:
        """Run once, on the device.

        Parameters
        ----------
        wait : bool, default: True
            Whether to return when all is computed. Otherwise a GPU may still be at it, in the
            order of the calls; ``results`` and ``wait`` wait for it. Ctrl-C ends a run that is
            waited for.

        Raises
        ------
        RunError
            When onnxruntime fails.
        """
        try:
            run_bound(self.session, self._binding, wait=wait)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # onnxruntime's classes share no base but Exception
            shapes = {name: value.shape() for name, value in self._inputs.items()}
            raise run_error(error, shapes) from error
        self._ran = True

    def wait(self) -> None:
        """Return when all runs so far are through."""
        self._binding.synchronize_outputs()

    def results(self) -> dict[str, np.ndarray]:
        """Copy the outputs of the last run to arrays, once it is through.

        Raises
        ------
        ModelError
            When nothing was run yet, or an output is of a type that NumPy does not have.
        """
        if not self._ran:
            raise ModelError("nothing was run yet, so that there are no results")
        self.wait()
        found = {}
        for name, value in self.outputs.items():
            try:
                found[name] = np.array(value.numpy())
            except Exception as error:  # the same
                kind = value.data_type()
                raise ModelError(f"output {name!r} is a {kind}, and no array of NumPy") from error
        return found

    def update(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy new values into inputs, some or all, of the shapes and types that they have.

        Raises
        ------
        ValueError
            When a name, shape or type is another; nothing is copied then.
        """
        arrays = {}
        for name, array in feeds.items():
            if name not in self._inputs:
                raise ValueError(f"expected inputs among {list(self._inputs)}, got {name!r}")
            held, array = self._inputs[name], np.asarray(array)
            kind = f"tensor({_TYPES.get(array.dtype.name, array.dtype.name)})"
            if list(array.shape) != list(held.shape()) or kind != held.data_type():
                raise ValueError(
                    f"expected {name!r} to stay {held.data_type()} {tuple(held.shape())}, "
                    f"got {kind} {array.shape}"
                )
            arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
        self.wait()
        for name, array in arrays.items():
            self._inputs[name].update_inplace(array)

    def _placed(self, name: str, value: Any) -> Any:
        if isinstance(value, onnxruntime.OrtValue):
            return value
        if not isinstance(value, np.ndarray | np.generic):
            raise TypeError(
                f"expected input {name!r} as a numpy.ndarray or onnxruntime.OrtValue, "
                f"got {type(value).__name__}"
            )
        # A copy: on the CPU onnxruntime would use, and `update` overwrite, the caller's memory.
        array = as_taken(np.array(value, order="C", copy=True))
        if isinstance(array, onnxruntime.OrtValue):  # bfloat16: copied to the device when bound
            return array
        if array.dtype.kind not in "fiub":
            raise TypeError(f"expected input {name!r} to hold numbers, got {array.dtype}")
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, self._device_id)

    def _bind(self) -> None:
        self._binding = self.session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            self._binding.bind_output(name, self._device, self._device_id)


_TYPES = {"float32": "float", "float64": "double"}
"""ONNX's names for types, where they are not NumPy's."""
