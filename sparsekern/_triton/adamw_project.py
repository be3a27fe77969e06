"""``adamw_project_``: Adam in torch's elementwise ops, then the Triton projection, matrix by matrix."""

import torch
from torch import Tensor

from .plain import write_pattern_
from .topk_project import topk_project_


def adamw_project_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    crows: list[Tensor],
    cols: list[Tensor],
    ccols: list[Tensor],
    rows: list[Tensor],
    perms: list[Tensor],
    floors: list[int],
    axes: list[int],
    lr: Tensor,
    grad_scale: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """One step of exact mode on every matrix; returns the flat index of the first NaN of each."""
    nan_at = []
    for i, (w, grad, avg, sq) in enumerate(zip(weights, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = grad * grad_scale.to(w.dtype)
        avg.mul_(beta1).add_(g, alpha=1 - beta1)
        sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step = steps[i].double()
        size = (lr / (1 - beta1**step)).to(w.dtype)
        root = (1 - beta2**step).sqrt().to(w.dtype)
        w.sub_(size * avg / (sq.sqrt() / root + eps))
        crow, col, nan = topk_project_(w, cols[i].numel(), floors[i], axes[i])
        w.mul_((1 - lr * weight_decay).to(w.dtype))
        write_pattern_(crow, col, (crows[i], cols[i], ccols[i], rows[i], perms[i]))
        nan_at.append(nan)
    return torch.stack(nan_at)
