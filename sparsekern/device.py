"""The device that a model is trained or sampled on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def find_device(name: str) -> torch.device:
    """The device called ``name``: cpu, cuda or cuda:N.

    Raises:
        ValueError: another kind of device, or torch does not see it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"--device {name}: torch sees {count or 'no'} CUDA device{'s' if count > 1 else ''}")
    return device


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within the block torch's own kernels on a GPU give the same bits from run to run, as sparsekern's always do."""
    if device.type == "cpu":
        yield
        return
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch insists
    torch.use_deterministic_algorithms(True, warn_only=True)  # an op that has no such kernel warns once
    memory.fill_uninitialized_memory = False  # which would cost a pass over every output
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]
