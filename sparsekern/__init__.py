"""Weight-sparse training made cheap: sparse kernels, layers, training and circuits for PyTorch."""

from . import models, nn, ops, optim
from ._native import build_info, cpu_isa, keep_freed_memory, set_cpu_isa
from .formats import CSR, Pattern
from .nn import sparsify_

__version__: str = build_info()["version"]
__all__ = [
    "CSR",
    "Pattern",
    "build_info",
    "cpu_isa",
    "keep_freed_memory",
    "models",
    "nn",
    "ops",
    "optim",
    "set_cpu_isa",
    "sparsify_",
]
