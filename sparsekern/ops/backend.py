"""Which implementation of the raw ops runs on a device: torch's own dispatcher is the switch."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

CUDA_LIBRARY = Path(__file__).parent.parent / "_cuda.so"

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


def gpu_backend() -> str:
    """What runs on a GPU if nothing else is asked for: "cuda" (the CUDA C++ kernels), "triton", or "none"."""
    if CUDA_LIBRARY.exists() and torch.version.cuda:
        return "cuda"
    return "triton" if torch.version.cuda or torch.version.hip else "none"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, ops on a GPU run the kernels of ``name``: "cuda" or "triton".

    Raises:
        ValueError: there is no such backend, or it was not built.
    """
    if name not in ("cuda", "triton"):
        raise ValueError(f'use_backend: name must be "cuda" or "triton", got {name!r}')
    if name == gpu_backend():
        yield
    elif name == "triton":
        with overridden(_triton_kernels(), "cuda"):
            yield
    else:
        raise ValueError(f"use_backend: the CUDA kernels were not built; a GPU runs {gpu_backend()!r} here")


_installed: list[torch.library.Library] = []  # a registration lives as long as its object


def load_gpu_kernels() -> None:
    """Load or install what :func:`gpu_backend` names."""
    if gpu_backend() == "cuda":
        torch.ops.load_library(CUDA_LIBRARY)
        _installed.append(install({name: _deferred(name) for name in TRITON_ONLY}, "cuda"))
    elif gpu_backend() == "triton":
        _installed.append(install({name: _deferred(name) for name in TRITON_OPS}, "cuda"))


TRITON_ONLY = ("bsr_linear", "bsr_sddmm")  # blocks are Triton's home: there are no CUDA C++ kernels
# The keys of sparsekern._triton.IMPLEMENTATIONS, without importing it: that would import Triton.
TRITON_OPS = (
    "abs_topk",
    "abs_topk_backward",
    "adamw_project_",
    "adamw_select_",
    *TRITON_ONLY,
    "csr_embedding",
    "csr_embedding_backward",
    "csr_gather",
    "csr_linear",
    "csr_linear_backward",
    "csr_scatter",
    "csr_sddmm",
    "csr_transpose",
    "topk_project_",
    "topk_select",
)


def _triton_kernels() -> Implementations:
    from .._triton import IMPLEMENTATIONS

    return IMPLEMENTATIONS


def _deferred(name: str) -> Callable[..., Any]:
    """The Triton implementation of a raw op; Triton is imported when it is first called."""
    return lambda *args: _triton_kernels()[name](*args)
