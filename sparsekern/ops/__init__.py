"""The ops, each a documented function on formats; importing this loads the kernels."""

from pathlib import Path

import torch

from . import reference
from .abs_topk import abs_topk
from .adamw_project import adamw_project_
from .adamw_select import ActiveMatrix, adamw_select_
from .backend import gpu_backend, load_gpu_kernels, use_backend
from .bsr_linear import bsr_linear, dds, dsd
from .bsr_linear_active import bsr_linear_active
from .bsr_sddmm import bsr_sddmm, sdd
from .causal_attention import causal_attention
from .choice import KernelChoice, TilePlan, choose_linear, plan_tiles
from .csr_embedding import csr_embedding
from .csr_linear import csr_linear
from .csr_linear_active import csr_linear_active
from .csr_linear_dense_grad import csr_linear_dense_grad
from .csr_sddmm import csr_sddmm
from .observe import observe
from .rms_norm import rms_norm
from .status import check_status
from .topk_project import topk_project_

__all__ = [
    "ActiveMatrix",
    "KernelChoice",
    "TilePlan",
    "abs_topk",
    "adamw_project_",
    "adamw_select_",
    "bsr_linear",
    "bsr_linear_active",
    "bsr_sddmm",
    "causal_attention",
    "check_status",
    "choose_linear",
    "csr_embedding",
    "csr_linear",
    "csr_linear_active",
    "csr_linear_dense_grad",
    "csr_sddmm",
    "dds",
    "dsd",
    "gpu_backend",
    "observe",
    "plan_tiles",
    "reference",
    "rms_norm",
    "sdd",
    "topk_project_",
    "use_backend",
]

_kernels = Path(__file__).parent.parent / "_ops.so"
if not _kernels.exists():
    raise ImportError(f"sparsekern was not built ({_kernels.name} is missing): run `make setup`, or `pip install .`")
torch.ops.load_library(_kernels)
load_gpu_kernels()
