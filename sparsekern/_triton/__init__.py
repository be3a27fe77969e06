"""The raw ops for devices without native kernels: Triton where speed counts, plain torch elsewhere.

``sparsekern.ops.backend`` puts :data:`IMPLEMENTATIONS` under torch's dispatcher; nothing here is called by users.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from . import plain
from .abs_topk import abs_topk, abs_topk_backward
from .adamw_project import adamw_project_
from .adamw_select import adamw_select_
from .bsr_linear import bsr_linear
from .bsr_sddmm import bsr_sddmm
from .csr_linear import csr_linear, csr_linear_backward
from .csr_sddmm import csr_sddmm
from .topk_project import topk_project_, topk_select


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current GPU, which need not be that of the tensors."""

    @wraps(function)
    def launch(first: Any, *rest: Any) -> Any:
        with torch.cuda.device_of(first[0] if isinstance(first, list) else first):
            return function(first, *rest)

    return launch


_TRITON = (
    adamw_project_,
    adamw_select_,
    bsr_linear,
    bsr_sddmm,
    csr_linear,
    csr_linear_backward,
    csr_sddmm,
    abs_topk,
    abs_topk_backward,
    topk_project_,
    topk_select,
)
_PLAIN = (
    plain.csr_transpose,
    plain.csr_gather,
    plain.csr_scatter,
    plain.csr_embedding,
    plain.csr_embedding_backward,
)

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    **{function.__name__: _on_its_device(function) for function in _TRITON},
    **{function.__name__: function for function in _PLAIN},
}
