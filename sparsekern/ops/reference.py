"""Every op in plain torch: slow, obvious, differentiable, in any dtype. The truth that kernels are tested against."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..formats import BSR, CSR, ActivePattern, Pattern
    from .adamw_select import ActiveMatrix


def as_matrix(x: Tensor) -> Tensor:
    """(T, D): all leading dimensions flattened."""
    return x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)


def row_indices(pattern: "Pattern") -> Tensor:
    """(nnz) int64: the row of every position."""
    counts = pattern.crow_indices.diff().long()
    return torch.repeat_interleave(torch.arange(pattern.shape[0], device=counts.device), counts)


def to_dense(w: "CSR") -> Tensor:
    """(N, K) with zeros off the pattern."""
    dense = w.values.new_zeros(w.shape)
    return dense.index_put((row_indices(w.pattern), w.pattern.col_indices.long()), w.values)


def csr_linear(x: Tensor, w: "CSR", bias: Tensor | None = None) -> Tensor:
    y = x @ to_dense(w).T
    return y if bias is None else y + bias


def csr_linear_dense_grad(x: Tensor, master: Tensor, pattern: "Pattern", bias: Tensor | None = None) -> Tensor:
    mask = master.new_zeros(pattern.shape)
    mask[row_indices(pattern), pattern.col_indices.long()] = 1
    masked = master + (master * mask - master).detach()  # the value is masked, the gradient is not
    y = x @ masked.T
    return y if bias is None else y + bias


def csr_linear_active(x: Tensor, active: Tensor, pattern: "ActivePattern", bias: Tensor | None = None) -> Tensor:
    flat = active.new_zeros(pattern.shape).flatten().index_put((pattern.flat_indices(),), active)
    master = flat.view(pattern.shape)
    return csr_linear_dense_grad(x, master, pattern.support, bias)


def csr_sddmm(a: Tensor, b: Tensor, w: "CSR") -> Tensor:
    product = as_matrix(a).T @ as_matrix(b)
    return product[row_indices(w.pattern), w.pattern.col_indices.long()]


def bsr_linear(x: Tensor, w: "BSR", bias: Tensor | None = None) -> Tensor:
    y = x @ w.to_dense().T
    return y if bias is None else y + bias


def bsr_linear_active(
    x: Tensor, active: Tensor, pattern: "ActivePattern", out_features: int, bias: Tensor | None = None
) -> Tensor:
    def dense(flat: Tensor, blocks: Tensor) -> Tensor:
        (rows, cols), (height, width) = pattern.shape, blocks.shape[1:]
        whole = blocks.new_zeros(rows * cols, height, width).index_copy(0, flat, blocks)
        whole = whole.view(rows, cols, height, width).transpose(1, 2).reshape(rows * height, cols * width)
        return whole[:out_features, : x.shape[-1]]

    support = dense(pattern.support.flat_indices(), active.detach()[pattern.slots.long()])
    everything = dense(pattern.flat_indices(), active)
    y = x @ (everything + (support - everything).detach()).T  # the value is that of the support, the gradient is not
    return y if bias is None else y + bias


def bsr_sddmm(a: Tensor, b: Tensor, w: "BSR") -> Tensor:
    return w.gather(as_matrix(a).T @ as_matrix(b)).values


def causal_attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None = None) -> Tensor:
    tokens, width = q.shape[1], q.shape[3]
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(width)
    scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    if sink is not None:
        scores = torch.cat([sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1), scores], dim=3)
    attended = scores.softmax(-1)[..., -tokens:] if tokens else scores
    return torch.einsum("bhij,bjhd->bihd", attended, v)


def topk_mask(magnitude: Tensor, k: int) -> Tensor:
    """True at the ``k`` largest along the last dimension; NaN counts as largest, equal ones go to the lowest index."""
    key = torch.where(magnitude.isnan(), torch.inf, magnitude)
    order = key.sort(dim=-1, descending=True, stable=True).indices
    if magnitude.isnan().any():  # NaN before infinity
        nan_first = magnitude.isnan().gather(-1, order).int().sort(dim=-1, descending=True, stable=True).indices
        order = order.gather(-1, nan_first)
    return torch.zeros_like(magnitude, dtype=torch.bool).scatter(-1, order[..., :k], True)


def abs_topk(x: Tensor, k: int) -> Tensor:
    return torch.where(topk_mask(x.detach().abs(), k), x, torch.zeros_like(x))


def topk_project_(weight: Tensor, k: int, floor: int = 0, axis: int | None = None) -> Tensor:
    magnitude = weight.detach().abs()
    reserved = torch.zeros_like(magnitude, dtype=torch.bool)
    if axis is not None:
        reserved = topk_mask(magnitude if axis == 0 else magnitude.T, floor)
        reserved = reserved if axis == 0 else reserved.T
    rest = torch.where(reserved, -1.0, magnitude).flatten()
    kept = reserved | topk_mask(rest, k - int(reserved.sum())).view_as(weight)
    with torch.no_grad():
        return weight.copy_(torch.where(kept, weight, torch.zeros_like(weight)))


def adamw_project_(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    k: int,
    floor: int,
    axis: int | None,
    *,
    lr: float,
    grad_scale: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Tensor:
    with torch.no_grad():
        g = grad * grad_scale
        exp_avg.mul_(betas[0]).add_(g, alpha=1 - betas[0])
        exp_avg_sq.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
        denominator = exp_avg_sq.sqrt() / (1 - betas[1] ** step) ** 0.5 + eps
        weight -= lr / (1 - betas[0] ** step) * exp_avg / denominator
        return topk_project_(weight, k, floor, axis).mul_(1 - lr * weight_decay)


def adamw_select_(
    m: "ActiveMatrix",
    *,
    lr: float,
    grad_scale: float,
    betas: tuple[float, float],
    candidate_beta1: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Of one matrix; its pattern is left as it is, its new support is where ``in_support`` is True."""
    with torch.no_grad():
        step, shape = float(m.step), m.pattern.shape
        beta1 = torch.full_like(m.weight, candidate_beta1).masked_fill_(m.in_support, betas[0])
        g = m.grad * grad_scale
        m.exp_avg.mul_(beta1).add_((1 - beta1) * g)
        m.exp_avg_sq.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
        correction = torch.where(m.joined == 0, 1 - beta1**step, 1)
        denominator = (m.exp_avg_sq / (1 - betas[1] ** (step - m.joined))).sqrt() + eps
        m.weight.sub_(lr / correction * m.exp_avg / denominator)
        rows = torch.repeat_interleave(torch.arange(shape[0]), m.active_crow.diff().long())
        at = (rows, m.active_col.long())
        magnitude = torch.full(shape, -1.0, dtype=m.weight.dtype).index_put(at, m.weight.abs())  # -1: not active
        kept = torch.zeros(shape, dtype=torch.bool)
        if m.floor:
            reserved = topk_mask(magnitude if m.axis == 0 else magnitude.T, m.floor)
            kept = (reserved if m.axis == 0 else reserved.T) & (magnitude >= 0)
        rest = torch.where(kept, -1.0, magnitude).flatten()
        kept |= topk_mask(rest, m.slots.shape[0] - int(kept.sum())).view(shape)
        m.in_support.copy_(kept[at])
        m.weight.mul_(1 - lr * weight_decay).mul_(m.in_support)


def csr_embedding(ids: Tensor, w: "CSR") -> Tensor:
    return to_dense(w)[ids]
