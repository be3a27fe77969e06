"""Layers with sparse weights, drop-ins for those of ``torch.nn``."""

from .abs_topk import AbsTopK
from .linear import SparseEmbedding, SparseLinear
from .sparsify import sparsify_
from .weight import SparseWeight

__all__ = ["AbsTopK", "SparseEmbedding", "SparseLinear", "SparseWeight", "sparsify_"]
