"""Which dtypes go together."""

import torch
from torch import Tensor


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of values, biases and their gradients beside activations of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast, where it is enabled for the device of ``x``, asks activations like ``x`` to be."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def autocast(x: Tensor) -> Tensor:
    """``x`` in the dtype that autocast asks for on its device; values stay as they are."""
    return x.to(autocast_dtype(x))
