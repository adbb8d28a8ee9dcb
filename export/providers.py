"""What a choice of execution providers means, and whether this onnxruntime can follow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .placement import CPU, CUDA

__all__ = [
    "Entry",
    "ProviderError",
    "Providers",
    "advice",
    "asked",
    "resolve",
    "uses_cuda",
    "uses_tf32",
]

Providers = str | Sequence[str | tuple[str, Mapping[str, Any]]]

Entry = str | tuple[str, dict[str, Any]]
"""A provider as onnxruntime takes it: its name, or a pair with options."""

# Otherwise float32 convolutions and matrix products are rounded to TF32, which has 10 bits.
_EXACT_CUDA: Entry = (CUDA, {"use_tf32": "0"})


class ProviderError(ValueError):
    """The execution provider that was asked for is not the one in use."""


def resolve(providers: Providers) -> tuple[list[Entry], list[str]]:
    """Split into what onnxruntime is given and the names that must be in use afterwards.

    Raises
    ------
    ProviderError
        When this onnxruntime does not have one that was asked for.
    ValueError, TypeError
        When it is no choice of providers.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    given = _given(providers)
    if providers == "auto":
        return (given if CUDA in available else [CPU]), []
    names = [name for name, _ in _pairs(given)]
    missing = [name for name in names if name not in available]
    if missing:
        raise ProviderError(
            f"{asked(names)}: {', '.join(missing)} is not in this onnxruntime "
            f"{onnxruntime.__version__}, which has {', '.join(available)}{advice(missing)}"
        )
    return given, names


def uses_cuda(providers: Providers) -> bool:
    """Whether CUDA is to be used: with "auto", where this onnxruntime has it."""
    if providers == "auto":
        import onnxruntime

        return CUDA in onnxruntime.get_available_providers()
    return any(name == CUDA for name, _ in _pairs(_given(providers)))


def uses_tf32(providers: Providers) -> bool:
    """Whether CUDA may round float32 to TF32: only by a list that leaves it at its default."""
    return any(
        name == CUDA and str(options.get("use_tf32", "1")) not in ("0", "False", "false")
        for name, options in _pairs(_given(providers))
    )


def asked(names: Sequence[str]) -> str:
    """How an error begins."""
    return f"asked for {', '.join(names)}"


def advice(names: Sequence[str]) -> str:
    """What to do where these do not work, for the end of an error."""
    if CUDA not in names:
        return ""
    return (
        '; for CUDA: pip uninstall onnxruntime, then pip install "cbn[gpu]", '
        "with an NVIDIA driver, CUDA and cuDNN that it can load"
    )


def _given(providers: Providers) -> list[Entry]:
    if not isinstance(providers, str):
        given = [_entry(item) for item in providers]
        if not given:
            raise ValueError("expected at least one provider, got an empty list")
        return given
    short: dict[str, list[Entry]] = {
        "cpu": [CPU],
        "cuda": [_EXACT_CUDA],
        "auto": [_EXACT_CUDA, CPU],
    }
    if providers not in short:
        raise ValueError(
            'expected providers "cpu", "cuda", "auto" or a list of onnxruntime\'s own names, '
            f"got {providers!r}"
        )
    return short[providers]


def _entry(item: Any) -> Entry:
    if isinstance(item, str):
        return item
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str):
        return item[0], dict(item[1])
    raise TypeError(f"expected a provider as a name or a pair (name, options), got {item!r}")


def _pairs(given: Sequence[Entry]) -> list[tuple[str, dict[str, Any]]]:
    return [(item, {}) if isinstance(item, str) else item for item in given]
