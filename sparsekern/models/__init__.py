"""Models built from the sparse layers, and the released ones."""

from .config import GPTConfig
from .gpt import GPT
from .released import ReleasedFormatError, load_released, save_released

__all__ = ["GPT", "GPTConfig", "ReleasedFormatError", "load_released", "save_released"]
