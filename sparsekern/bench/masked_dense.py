"""The baseline that people train today: the same model with dense matrices, torch.topk and a projection by mask."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import GPT
from ..nn import AbsTopK, CausalAttention, RMSNorm, SparseEmbedding, SparseLinear, SparseWeight


class TorchAbsTopK(nn.Module):
    """AbsTopK through ``torch.topk`` and scatter."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        kept = x.abs().topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))


class TorchAttention(nn.Module):
    """Causal attention through ``scaled_dot_product_attention``."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, T, H, D) -> (B, T, H, D)."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def masked_dense_copy(model: GPT) -> GPT:
    """``model`` with every sparse layer as its dense counterpart (zeros stored), and all else in plain torch."""
    dense = copy.deepcopy(model)
    for name, module in list(dense.named_modules()):
        if isinstance(module, SparseLinear):
            dense.set_submodule(name, module.to_linear())
        elif isinstance(module, SparseEmbedding):
            table = module.weight.to_dense().detach()
            dense.set_submodule(name, nn.Embedding.from_pretrained(table, freeze=False))
        elif isinstance(module, AbsTopK):
            dense.set_submodule(name, TorchAbsTopK(module.k))
        elif isinstance(module, CausalAttention):
            dense.set_submodule(name, TorchAttention())
        elif isinstance(module, RMSNorm):
            norm = nn.RMSNorm(len(module.weight), module.eps, device=module.weight.device, dtype=module.weight.dtype)
            norm.load_state_dict(module.state_dict())
            dense.set_submodule(name, norm)
    return dense


def project_(weight: Tensor, k: int, floor: int, axis: int | None) -> None:
    """Keep the ``k`` largest magnitudes with ``torch.topk``, ``floor`` of every row or column first."""
    magnitude = weight.abs()
    if floor and axis is not None:
        reserved = magnitude.topk(floor, dim=1 - axis, sorted=False).indices
        magnitude.scatter_(1 - axis, reserved, math.inf)
    kept = magnitude.flatten().topk(k, sorted=False).indices
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask.view(-1)[kept] = True
    weight.mul_(mask)


class MaskedDenseStep:
    """A training step of the masked dense model, in the published order, with torch's own fused Adam.

    Args:
        sparse: the model that tells which parameters are projected, to how many nonzeros, with which floors.
        dense: its :func:`masked_dense_copy`.
        dtype: of the activations, by autocast.
    """

    def __init__(
        self, sparse: GPT, dense: GPT, lr: float, weight_decay: float = 0.1, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = dense
        self.dtype = dtype
        self.weight_decay = weight_decay
        self.projected: list[tuple[nn.Parameter, SparseWeight]] = [
            (dense.get_parameter(f"{name}.weight"), module.weight)
            for name, module in sparse.named_modules()
            if isinstance(module, SparseLinear | SparseEmbedding)
        ]
        self.parameters = list(dense.parameters())
        spared = sparse.no_weight_decay()
        self.decayed: list[Tensor] = [p for name, p in dense.named_parameters() if p.dim() > 1 and name not in spared]
        self.adam = torch.optim.Adam(self.parameters, lr=lr, betas=(0.9, 0.95), eps=0.1, fused=True)

    def __call__(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Forward, backward and update; returns the loss before it."""
        loss = self.gradients(ids, targets)
        self.update()
        return loss

    def gradients(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward; returns the loss."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.model.loss(ids, targets)
        self.adam.zero_grad()
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def update(self) -> None:
        """Normalise, Adam, projection, decay."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        rms = torch.nn.utils.get_total_norm(grads) / math.sqrt(sum(p.numel() for p in self.parameters))
        torch._foreach_div_(grads, rms + 1e-5)
        self.adam.step()
        for p, weight in self.projected:
            project_(p, weight.budget, weight.floor, weight.axis)
        torch._foreach_mul_(self.decayed, 1 - self.adam.param_groups[0]["lr"] * self.weight_decay)
