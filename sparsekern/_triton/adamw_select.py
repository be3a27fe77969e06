"""``adamw_select_``: Adam and the floors in torch's own ops, then the Triton selection, matrix by matrix."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .plain import row_indices, write_pattern_
from .topk_project import topk_select

_WIDTH = 2048  # of the matrix that the active entries are selected from: a row has one writer


def adamw_select_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    joined: list[Tensor],
    steps: list[Tensor],
    in_supports: list[Tensor],
    active_crows: list[Tensor],
    active_cols: list[Tensor],
    slots: list[Tensor],
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
    candidate_beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """One step of sparse mode on every matrix; returns the active position of the first NaN of each."""
    nan_at = []
    for i, (w, avg, sq, in_support) in enumerate(zip(weights, exp_avgs, exp_avg_sqs, in_supports, strict=True)):
        beta = torch.full_like(w, candidate_beta1).masked_fill_(in_support, beta1)
        rest = torch.full_like(w, 1 - candidate_beta1).masked_fill_(in_support, 1 - beta1)
        g = grads[i] * grad_scale.to(w.dtype)
        avg.mul_(beta).add_(g * rest)
        sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step = steps[i].double()
        first = torch.where(in_support, lr / (1 - beta1**step), lr / (1 - candidate_beta1**step))
        size = torch.where(joined[i] == 0, first, lr).to(w.dtype)
        root = (1 - beta2 ** (step - joined[i].double())).sqrt().to(w.dtype)
        w.sub_(size * avg / (sq.sqrt() / root + eps))

        scores = w
        if floors[i]:
            neurons = row_indices(active_crows[i], active_cols[i]) if axes[i] == 0 else active_cols[i]
            scores = _reserve(w, neurons, floors[i])
        kept, nan = _largest(scores, slots[i].numel())
        in_support.zero_().index_fill_(0, kept, True)
        w.mul_((1 - lr * weight_decay).to(w.dtype)).masked_fill_(~in_support, 0)
        slots[i].copy_(kept)
        crow = torch.searchsorted(slots[i], active_crows[i])
        write_pattern_(crow, active_cols[i][kept], (crows[i], cols[i], ccols[i], rows[i], perms[i]))
        nan_at.append(nan)
    return torch.stack(nan_at)


def _reserve(weight: Tensor, neurons: Tensor, floor: int) -> Tensor:
    """The weights, but infinity for the ``floor`` largest of every neuron; a NaN stays."""
    by_magnitude = weight.abs().sort(descending=True, stable=True).indices
    by_neuron, within = neurons[by_magnitude].sort(stable=True)
    order = by_magnitude[within]
    rank = torch.arange(order.numel(), device=order.device) - torch.searchsorted(by_neuron, by_neuron)
    scores = weight[order]
    scores = scores.masked_fill((rank < floor) & ~scores.isnan(), torch.inf)
    return torch.empty_like(weight).scatter_(0, order, scores)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The positions of the k largest magnitudes, ascending, and of the first NaN."""
    matrix = pad(scores, (0, -scores.numel() % _WIDTH)).view(-1, _WIDTH)  # zeros at the end are chosen last
    crow, col, nan_at = topk_select(matrix, k, 0, 0)
    return row_indices(crow, col) * _WIDTH + col, nan_at
