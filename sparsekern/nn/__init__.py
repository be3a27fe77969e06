"""Layers with sparse weights, drop-ins for those of ``torch.nn``."""

from .abs_topk import AbsTopK
from .attention import CausalAttention
from .linear import SparseEmbedding, SparseLinear
from .rms_norm import RMSNorm
from .sparsify import sparsify_
from .weight import SparseWeight

__all__ = ["AbsTopK", "CausalAttention", "RMSNorm", "SparseEmbedding", "SparseLinear", "SparseWeight", "sparsify_"]
