"""Map a function over batches, here or on other processes and machines, results in order."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, Protocol, TypeVar

__all__ = ["ExecutorLike", "Progress", "connect", "map_in_order"]

Result = TypeVar("Result")

ExecutorLike = Any
"""None, a ``concurrent.futures.Executor``, a ``dask.distributed.Client``, a scheduler's address.
No type names the client without importing Dask."""

RETRIES = 1
"""How often Dask runs a batch again whose function raised. One whose worker died is run again as
often as Dask's own setting ``distributed.scheduler.allowed-failures`` says, by default 3 times."""

_KEPT = 4
_received: OrderedDict[str, _Sent] = OrderedDict()


class Progress(Protocol):
    """What is told how far a run is: ``progress(stage, done, total)``, total None when unknown."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """`done` batches of `total` are through in the stage of this name."""
        ...


def map_in_order(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
    executor: ExecutorLike = None,
    *,
    in_flight: int | None = None,
) -> Iterator[Result]:
    """Call a function for each tuple of arguments and give the results in the order of the tuples.

    The caller merges the results in that order, so that sums are the same to the bit whatever the
    number of workers and whichever of them is first. onnxruntime's own results may depend on its
    number of threads and on the instruction set of the CPU: give the function one fixed
    ``num_threads`` and workers of one kind where the bits must agree.

    Parameters
    ----------
    function : callable
        Called as ``function(*arguments)``. For other processes it is pickled; each of them
        unpickles it once, however many batches it gets, so a session that it makes is made once.
    arguments : iterable of tuple
        Read one by one as there is room, never all at once.
    executor : optional
        None: here, one after the other. A ``concurrent.futures.Executor``. A
        ``dask.distributed.Client``, or the address of a scheduler (extra ``dask``): a batch whose
        worker dies is run again by Dask on another one.
    in_flight : int, optional
        Batches that are sent and not yet given back; twice the workers' threads by default.

    Yields
    ------
    object
        One result for each tuple.

    Raises
    ------
    TypeError
        When `executor` is none of these.
    ImportError
        When Dask is asked for and not installed.
    ConnectionError
        When no scheduler answers at the address.
    ValueError
        When the address is none.
    Exception
        What the function raises. What is still in flight is then cancelled, also when the caller
        stops early.
    """
    with connect(executor) as connected:
        if connected is None:
            for item in arguments:
                yield function(*item)
        elif isinstance(connected, futures.Executor):
            sent = _Sent(function)
            workers = getattr(connected, "_max_workers", None) or os.cpu_count() or 1
            yield from _bounded(
                lambda item: connected.submit(sent, *item),
                arguments,
                lambda: in_flight or 2 * workers,
            )
        else:
            yield from _on_dask(function, arguments, connected, in_flight)


@contextlib.contextmanager
def connect(executor: ExecutorLike) -> Iterator[ExecutorLike]:
    """Give an executor as `map_in_order` takes it; an address becomes a Dask client while it lasts.

    Raises
    ------
    TypeError
        When `executor` is none of the accepted ones.
    ImportError
        When Dask is asked for and not installed.
    ConnectionError
        When no scheduler answers at the address.
    ValueError
        When the address is none.
    """
    if isinstance(executor, str):
        with _client(executor) as client:
            yield client
    elif executor is None or isinstance(executor, futures.Executor) or _is_client(executor):
        yield executor
    else:
        raise TypeError(
            "expected executor as None, a concurrent.futures.Executor, a dask.distributed.Client "
            "(not an asynchronous one) or the address of a Dask scheduler, got "
            f"{type(executor).__name__}"
        )


def _client(address: str) -> Any:
    distributed = _import_distributed()
    try:
        _require_port(address)
        return distributed.Client(address, set_as_default=False)
    except OSError as error:
        raise ConnectionError(
            f"executor: no Dask scheduler answers at {address!r}; expected the address that "
            "'dask scheduler' prints, such as 'tcp://10.0.0.1:8786'"
        ) from error
    except ValueError as error:
        raise ValueError(f"executor: {address!r} is no address of a scheduler: {error}") from error


def _require_port(address: str) -> None:
    """Refuse what is no address before there is a client, whose end would wait for a minute."""
    from distributed.comm.addressing import get_address_host_port

    scheme = address.partition("://")[0] if "://" in address else "tcp"
    if scheme in ("tcp", "tls"):
        get_address_host_port(address if "://" in address else f"tcp://{address}")


def _on_dask(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
    client: Any,
    in_flight: int | None,
) -> Iterator[Result]:
    # The function is the result of a task, not of scatter: what is scattered is gone with the last
    # worker that holds it, and a task is run again.
    with _no_size_warning():
        kept = client.submit(_itself, _Sent(function), pure=False, retries=RETRIES)

    def submit(item: tuple[Any, ...]) -> Any:
        with _no_size_warning():
            return client.submit(_call, kept, _Arguments(item), pure=False, retries=RETRIES)

    yield from _bounded(
        submit, arguments, lambda: in_flight or 2 * max(1, sum(client.nthreads().values()))
    )


def _bounded(
    submit: Callable[[tuple[Any, ...]], Any],
    arguments: Iterable[tuple[Any, ...]],
    limit: Callable[[], int],
) -> Iterator[Any]:
    """Submit one by one, never more than `limit` ahead of what was given back."""
    pending: deque[Any] = deque()
    try:
        for item in arguments:
            pending.append(submit(item))
            while len(pending) >= limit():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class _Sent:
    """A function for other processes: each of them unpickles it when it sees it first."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.token = uuid.uuid4().hex
        self.content: bytes | None = None

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.content is None:
            self.content = pickle.dumps(self.function)
        return _receive, (self.token, self.content)


def _receive(token: str, content: bytes) -> _Sent:
    if token not in _received:
        sent = _Sent(pickle.loads(content))
        sent.token, sent.content = token, content
        _received[token] = sent
        while len(_received) > _KEPT:
            _received.popitem(last=False)
    return _received[token]


class _Arguments:
    """Arguments of one call, which Dask is not to search for tasks."""

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items


def _itself(sent: _Sent) -> _Sent:
    return sent


def _call(function: Callable[..., Any], arguments: _Arguments) -> Any:
    return function(*arguments.items)


def _is_client(executor: Any) -> bool:
    distributed = sys.modules.get("distributed")
    if distributed is None or not isinstance(executor, distributed.Client):
        return False
    return not executor.asynchronous


def _import_distributed() -> Any:
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ImportError(
            'a Dask scheduler needs the package distributed: pip install "cbn[dask]"'
        ) from error
    return distributed


def _no_size_warning() -> Any:
    """A batch of images is more than Dask likes in a task; it is meant to be there."""
    import dask

    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"})
