"""``topk_project_``: keep the largest magnitudes of a whole matrix, in place."""

import torch
from torch import Tensor

from ._define import define
from .status import report_nan


def _index_dtype(k: int) -> torch.dtype:
    return torch.int32 if k < 2**31 else torch.int64


def _fake(weight: Tensor, k: int, floor: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _index_dtype(k)
    crow = weight.new_empty(weight.shape[0] + 1, dtype=dtype)
    return crow, weight.new_empty(k, dtype=dtype), weight.new_empty((), dtype=torch.int64)


_RULE_AND_RESULT = "SymInt k, SymInt floor, SymInt axis) -> (Tensor crow, Tensor col, Tensor nan_at)"
_project_raw = define(f"topk_project_(Tensor(a!) weight, {_RULE_AND_RESULT}", fake=_fake)
_select_raw = define(f"topk_select(Tensor weight, {_RULE_AND_RESULT}", fake=_fake)


def _check(name: str, weight: Tensor, k: int, floor: int, axis: int | None) -> None:
    if weight.dim() != 2:
        raise ValueError(f"{name}: weight must be a matrix, got shape {tuple(weight.shape)}")
    if not 0 <= k <= weight.numel():
        raise ValueError(f"{name}: k must be between 0 and {weight.numel()}, got {k}")
    if axis not in (None, 0, 1):
        raise ValueError(f"{name}: axis must be 0 (rows), 1 (columns) or None, got {axis}")
    if floor < 0 or (floor > 0 and axis is None):
        raise ValueError(f"{name}: floor must be 0, or positive with an axis, got floor={floor}, axis={axis}")
    if axis is not None and floor * weight.shape[axis] > k:
        raise ValueError(
            f"{name}: k must be at least floor * {weight.shape[axis]} = {floor * weight.shape[axis]}, got {k}"
        )


def topk_select(weight: Tensor, k: int, floor: int = 0, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """The ``(crow_indices, col_indices)`` of what ``topk_project_`` would keep; ``weight`` is only read."""
    _check("topk_select", weight, k, floor, axis)
    crow, col, nan_at = _select_raw(weight.detach(), k, floor, axis or 0)
    report_nan("topk_select", nan_at)
    return crow, col


def topk_project_pattern_(weight: Tensor, k: int, floor: int = 0, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """``topk_project_`` that returns the ``(crow_indices, col_indices)`` of the ``k`` kept positions."""
    _check("topk_project_", weight, k, floor, axis)
    data = weight.detach().contiguous()
    crow, col, nan_at = _project_raw(data, k, floor, axis or 0)
    report_nan("topk_project_", nan_at)
    if data.data_ptr() != weight.data_ptr():
        weight.detach().copy_(data)
    torch.autograd.graph.increment_version(weight)  # the kernel writes behind autograd's back
    return crow, col


def topk_project_(weight: Tensor, k: int, floor: int = 0, axis: int | None = None) -> Tensor:
    """Keep exactly ``k`` entries of a matrix and set the rest to 0, in place.

    First the ``floor`` largest magnitudes of every row (``axis=0``) or column (``axis=1``) are kept, then the largest
    of the others fill the budget. Equal magnitudes go to the lowest flat index, so the result is unique; kept
    entries may be zero when fewer than ``k`` are not (Gao et al. 2025, appendix A.2: projection and min-alive).

    Args:
        weight: (N, K), float32 or float64; changed in place, outside autograd.
        k: entries kept, ``floor * neurons <= k <= N * K``.
        floor: entries kept at least per row or column.
        axis: 0 or 1 where ``floor`` is positive.

    Returns:
        ``weight``.

    Raises:
        ValueError: ``k``, ``floor`` or ``axis`` does not fit the shape.
        RuntimeError: ``weight`` has another dtype, or holds NaN. On a CPU it is then unchanged; on a GPU NaN counts as
            the largest magnitude and the error is raised by :func:`check_status`, so that nothing waits.
    """
    topk_project_pattern_(weight, k, floor, axis)
    return weight
