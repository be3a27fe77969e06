"""Which implementation of the raw ops runs on a device: torch's own dispatcher is the switch."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Implementations = Mapping[str, Callable[..., Any]]  # raw op name -> a function of its schema


def install(implementations: Implementations, device: str) -> torch.library.Library:
    """Let ``implementations`` run on ``device`` ("cpu" or "cuda") for as long as the returned object lives."""
    library = torch.library.Library("sparsekern", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for name, function in implementations.items():
            library.impl(name, function, device.upper(), allow_override=True)
    return library


@contextmanager
def overridden(implementations: Implementations, device: str) -> Iterator[None]:
    """Within the block, ``implementations`` run on ``device`` in place of what was installed before."""
    library = install(implementations, device)
    try:
        yield
    finally:
        library._destroy()
