"""The optimizer of sparse weights and its schedules."""

from .schedules import Anneal, sharkfin, warmup_decay
from .sparse_adamw import GRADIENTS, SparseAdamW, param_groups

__all__ = ["GRADIENTS", "Anneal", "SparseAdamW", "param_groups", "sharkfin", "warmup_decay"]
