"""Models built from the sparse layers."""

from .gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
