"""Launches of kernels."""

from typing import Any


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Runs ``programs`` programs of a kernel.  Products and sums are fused, which Triton 3.10 will not do unasked."""
    kernel[(programs,)](*arguments, enable_fp_fusion=True, **constants)
