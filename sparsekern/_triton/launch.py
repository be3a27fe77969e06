"""Launches of kernels."""

from typing import Any

import torch


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Runs ``programs`` programs of a kernel.  Products and sums are fused, which Triton 3.10 will not do unasked."""
    kernel[(programs,)](*arguments, enable_fp_fusion=True, **constants)


def precision(dtype: torch.dtype) -> str:
    """How factors of float32 are multiplied: as ``torch.set_float32_matmul_precision`` says for torch's own, but on AMD
    always in full; to the others it makes no difference."""
    is_short = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if is_short and not torch.version.hip else "ieee"


def has_tensor_cores(dtype: torch.dtype) -> bool:
    """Whether products of such factors run on tensor cores."""
    return dtype.itemsize == 2 or precision(dtype) == "tf32"
