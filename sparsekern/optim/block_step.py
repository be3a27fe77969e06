"""A step of sparse mode on a matrix of blocks."""

from dataclasses import replace

import torch
from torch import Tensor

from ..ops.adamw_select import ActiveMatrix, adamw_select_
from .topology import over_entries


def adamw_select_blocks_(
    m: ActiveMatrix,
    *,
    lr: Tensor,
    grad_scale: Tensor,
    betas: tuple[float, float],
    candidate_beta1: float,
    eps: float,
    weight_decay: float,
) -> None:
    """What :func:`sparsekern.ops.adamw_select_` does, where a position is a block: the support is the blocks of largest
    norm. Weight, gradient and moments have shape (active, *block), all else is per position."""
    dtype, step = m.weight.dtype, m.step.double()
    beta1 = torch.full_like(m.joined, candidate_beta1, dtype=torch.float64).masked_fill_(m.in_support, betas[0])
    first = torch.where(m.joined == 0, 1 - beta1**step, 1.0)
    second = 1 - betas[1] ** (step - m.joined.double())
    of_entries = [over_entries(t.to(dtype), m.weight) for t in (beta1, first, second)]
    g = m.grad * grad_scale.to(dtype)
    m.exp_avg.lerp_(g, 1 - of_entries[0])
    m.exp_avg_sq.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    denominator = (m.exp_avg_sq / of_entries[2]).sqrt_().add_(eps)
    m.weight.sub_(m.exp_avg / (of_entries[1] * denominator) * lr.to(dtype))
    _select_(m, m.weight.norm(dim=(1, 2)), lr)
    m.weight.mul_(over_entries(m.in_support, m.weight)).mul_((1 - lr * weight_decay).to(dtype))


def _select_(m: ActiveMatrix, norms: Tensor, lr: Tensor) -> None:
    """Let the positions of largest norm be the support: a step that does not move, on weights that are the norms."""
    still = [torch.zeros_like(norms) for _ in range(3)]
    proxy = replace(m, weight=norms, grad=still[0], exp_avg=still[1], exp_avg_sq=still[2])
    rule = {"betas": (0.0, 0.0), "candidate_beta1": 0.0, "eps": 1.0, "weight_decay": 0.0}
    adamw_select_([proxy], lr=torch.zeros_like(lr), grad_scale=torch.ones_like(lr), **rule)  # type: ignore[arg-type]
