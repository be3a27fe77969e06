"""Layers with sparse weights, drop-ins for those of ``torch.nn``."""

from .abs_topk import AbsTopK
from .attention import CausalAttention
from .linear import BlockSparseLinear, SparseEmbedding, SparseLinear
from .report import report
from .rms_norm import RMSNorm
from .sparsify import sparsify_
from .weight import BlockSparseWeight, SparseWeight

__all__ = [
    "AbsTopK",
    "BlockSparseLinear",
    "BlockSparseWeight",
    "CausalAttention",
    "RMSNorm",
    "SparseEmbedding",
    "SparseLinear",
    "SparseWeight",
    "report",
    "sparsify_",
]
