"""Which dtypes go together."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

KERNELS = {"cpu": (torch.bfloat16,), "cuda": (torch.bfloat16, torch.float16)}  # for narrow activations


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of values, biases and their gradients beside activations of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast, where it is enabled for the device of ``x``, asks activations like ``x`` to be, as far as there
    are kernels for it."""
    device = x.device.type
    if x.dtype != torch.float32 or device not in KERNELS or not torch.is_autocast_enabled(device):
        return x.dtype
    asked = torch.get_autocast_dtype(device)
    return asked if asked in KERNELS[device] else x.dtype


def autocast(x: Tensor) -> Tensor:
    """``x`` in the dtype that autocast asks for on its device; values stay as they are."""
    return x.to(autocast_dtype(x))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Within the block torch's own ops, too, compute in the dtypes they are given."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if device in KERNELS else nullcontext()
