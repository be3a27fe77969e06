"""Weight-sparse training made cheap: sparse kernels, layers, training and circuits for PyTorch."""

import os
import warnings

from . import models, nn, ops, optim
from ._native import build_info, cpu_isa, keep_freed_memory, set_cpu_isa
from .formats import BSR, CSR, Pattern
from .nn import report, sparsify_
from .ops.backend import gpu_backend, use_backend

__version__: str = build_info()["version"]
__all__ = [
    "BSR",
    "CSR",
    "Pattern",
    "build_info",
    "cpu_isa",
    "gpu_backend",
    "keep_freed_memory",
    "models",
    "nn",
    "ops",
    "optim",
    "report",
    "set_cpu_isa",
    "sparsify_",
    "use_backend",
]

_asked = os.environ.get("SPARSEKERN_CPU_ISA")
if _asked and _asked != cpu_isa():
    warnings.warn(f"SPARSEKERN_CPU_ISA={_asked} is unknown or not available, {cpu_isa()} is used", stacklevel=2)
