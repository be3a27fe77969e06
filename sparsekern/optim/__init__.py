"""The optimizer of sparse weights and its schedules."""

from .schedules import Anneal, sharkfin, warmup_decay
from .sparse_adamw import SparseAdamW, param_groups

__all__ = ["Anneal", "SparseAdamW", "param_groups", "sharkfin", "warmup_decay"]
