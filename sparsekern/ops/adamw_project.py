"""``adamw_project_``: one step of exact mode on several matrices, in place."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._define import define
from .status import report_nan

if TYPE_CHECKING:
    from ..formats import Pattern


def _fake(weights: list[Tensor], *rest: object) -> Tensor:
    return weights[0].new_empty(len(weights), dtype=torch.int64)


_raw = define(
    "adamw_project_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor[] steps, Tensor(d!)[] crows, Tensor(e!)[] cols, Tensor(f!)[] ccols, Tensor(g!)[] rows, "
    "Tensor(h!)[] perms, int[] floors, int[] axes, Tensor lr, Tensor grad_scale, float beta1, float beta2, float eps, "
    "float weight_decay) -> Tensor nan_at",
    fake=_fake,
)


def adamw_project_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    patterns: Sequence["Pattern"],
    *,
    floors: Sequence[int],
    axes: Sequence[int | None],
    lr: Tensor,
    grad_scale: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Adam, projection, weight decay and the new patterns of several matrices, all in place.

    For each matrix: Adam on ``grad * grad_scale``, the rule of :func:`topk_project_` with ``k = pattern.nnz``, decay of
    what is kept, and the kept positions written into ``pattern`` in both layouts (Gao et al. 2025, appendix A.2).
    Nothing waits for a GPU, and a CUDA graph can capture it: what changes from step to step is read from tensors.

    Args:
        weights, grads, exp_avgs, exp_avg_sqs: (N, K) each, all float32 or all float64; the gradients are only read.
        steps: float32 scalars, the number of this step counted from 1.
        patterns: overwritten; their index tensors have one dtype.
        floors, axes: entries kept at least in every row (axis 0) or column (axis 1) of each matrix.
        lr: float64 scalar.
        grad_scale: float64 scalar that multiplies every gradient.
        betas, eps, weight_decay: Adam's constants; decay multiplies by ``1 - lr * weight_decay``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; or a matrix holds NaN after Adam. On a CPU it is then not
            projected; on a GPU NaN counts as the largest magnitude and :func:`check_status` raises.
    """
    if not weights:
        return
    for name, given in (("floors", floors), ("axes", axes), ("patterns", patterns)):
        if len(given) != len(weights):
            raise ValueError(
                f"adamw_project_: {name} must have one entry per weight ({len(weights)}), got {len(given)}"
            )
    indices = [[pattern.tensors[i] for pattern in patterns] for i in range(5)]
    nan_at = _raw(
        [w.detach() for w in weights],
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        list(steps),
        *indices,
        list(floors),
        [axis or 0 for axis in axes],
        lr,
        grad_scale,
        *betas,
        eps,
        weight_decay,
    )
    for changed in (weights, exp_avgs, exp_avg_sqs, *indices):
        torch.autograd.graph.increment_version(changed)  # the kernel writes behind autograd's back
    report_nan("adamw_project_", nan_at)
