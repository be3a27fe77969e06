"""Errors that a GPU finds while it works: noted there, raised when the host next asks, so that no step waits."""

import torch
from torch import Tensor

NO_NAN = torch.iinfo(torch.int64).max  # kNoNan of csrc/include/sparsekern/topk_project.h

_nan_at: dict[tuple[str, torch.device], Tensor] = {}  # the least flat index that an op has found on a device


def report_nan(op: str, nan_at: Tensor) -> None:
    """Note the flat indices ``nan_at`` (int64, ``NO_NAN`` where there is none); a CPU op has raised already."""
    if nan_at.device.type == "cpu" or nan_at.numel() == 0:
        return
    key = (op, nan_at.device)
    if key not in _nan_at:
        _nan_at[key] = nan_at.new_full((), NO_NAN)
    torch.minimum(_nan_at[key], nan_at.amin(), out=_nan_at[key])


def check_status() -> None:
    """Wait for what has been asked of the GPUs and raise the first error found since the last call.

    Raises:
        RuntimeError: an op selected from a matrix that holds NaN.
    """
    for (op, device), word in _nan_at.items():
        at = int(word.item())
        if at != NO_NAN:
            word.fill_(NO_NAN)
            raise RuntimeError(f"{op}: weight must not contain NaN, found one at flat index {at} on {device}")
