"""Method "batch": one pass of a model whose batch norms use, and give away, the batch's moments."""

from __future__ import annotations

import math
import threading
from typing import Any, get_args

import numpy as np
import onnx_ir as ir

from ...files import LARGEST_INLINE, ModelError
from ...inputs import Feeds
from ...sessions import Providers, make_session, run_session
from .instrument import Normalize, Tap, instrument
from .observed import Observed
from .samples import SampleMoments, observe, samples_in
from .targets import Targets

__all__ = ["BatchPass"]


class BatchPass:
    """What one batch tells of every target: ``batch_pass(feeds, first_sample)``.

    Each node to re-estimate normalizes with the mean and population variance of the batch, as in
    training. The statistics of several batches, added in their order, are what fvcore's
    ``update_bn_stats`` finds: the mean and population variance of all values that reached the
    node, each batch weighing as many as it has. Nothing goes through onnxruntime's training mode.

    Can be pickled, and called from several threads; the session is made on the first call in each
    process.

    Parameters
    ----------
    targets : Targets
    normalize : {"batch", "stored"}, default: "batch"
        With "stored" the nodes normalize as in the file, and are only measured.
    providers : {"cpu", "cuda", "auto"} or list, default: "cpu"
    num_threads : int, optional
        See ``make_session``.

    Raises
    ------
    ModelError
        When a node in training mode, which is not asked for, cannot be spelled out.
    ValueError
        When `normalize` is none of the two.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        normalize: Normalize = "batch",
        providers: Providers = "cpu",
        num_threads: int | None = None,
    ) -> None:
        if normalize not in get_args(Normalize):
            accepted = ", ".join(map(repr, get_args(Normalize)))
            raise ValueError(f"expected normalize to be one of {accepted}, got {normalize!r}")
        model, self._taps = instrument(targets, normalize)
        self._model: ir.Model | bytes = model
        self._targets = targets.targets
        self._providers = providers
        self._num_threads = num_threads
        self._session: Any = None
        self._lock = threading.Lock()

    def __call__(self, feeds: Feeds, first_sample: int) -> dict[str, Observed]:
        """Run one batch.

        Parameters
        ----------
        feeds : dict of str to numpy.ndarray
        first_sample : int
            Index of its first sample in the whole data.

        Returns
        -------
        dict of str to Observed
            By target, in graph order.

        Raises
        ------
        DataError
            When NaN or infinity reaches a target; the message names it and the samples.
        ModelError
            When onnxruntime cannot load or run the model.
        ProviderError
            When a provider that was asked for is not in use.
        """
        outputs = run_session(self._started(), feeds)
        samples = samples_in(feeds)
        return {
            target.name: observe(
                target,
                [_moments(self._taps[name], outputs) for name in target.members],
                samples,
                first_sample,
            )
            for target in self._targets
        }

    def _started(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session = make_session(
                    self._model, self._providers, num_threads=self._num_threads
                )
            return self._session

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_model": _to_bytes(self._model),
            "_session": None,
            "_lock": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _moments(tap: Tap, outputs: dict[str, np.ndarray]) -> SampleMoments:
    shift, mean, square = (
        outputs[name].astype(np.float64) for name in (tap.shift, tap.mean, tap.square)
    )
    count = math.prod(int(size) for size in outputs[tap.shape][2:])
    with np.errstate(invalid="ignore", over="ignore"):  # told by `observe`
        return SampleMoments(
            shift.reshape(-1) + mean, count * np.maximum(square - mean**2, 0), count
        )


def _to_bytes(model: ir.Model | bytes) -> bytes:
    if isinstance(model, bytes):
        return model
    copy = model.clone()
    ir.external_data.load_to_model(copy)
    tensors = (value.const_value for value in copy.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size > LARGEST_INLINE:
        raise ModelError(
            f"a model with {size} bytes of weights cannot be sent to another process: "
            f"at most {LARGEST_INLINE} fit into one message"
        )
    return bytes(ir.to_proto(copy).SerializeToString())
