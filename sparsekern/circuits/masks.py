"""Learned masks: which nodes a task needs, found by gradient descent (Gao et al. 2025, appendix A.5)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..optim import warmup_decay

CLIP = 1.0  # norm of the gradient; the published value is not known


@dataclass(frozen=True)
class MaskSettings:
    """How a mask is learned.

    The defaults are the centres of the published search but for the penalty and the rate, which are higher (1e-4 and
    3e-3 there): a mask of few hundred steps, where a replication took 2,000, would still be on its way down.

    Attributes:
        k_coef: loss per node that is kept.
        init_noise_scale, init_noise_bias: standard deviation and mean of the scores to begin with.
        weight_decay, lr, inv_beta2: of AdamW; ``lr`` falls linearly to 0.
        lr_warmup_frac: share of the steps in which the rate rises.
        heaviside_temp: temperature of the sigmoid whose derivative stands for that of the step function.
        steps, batch: steps, and pairs in each.
    """

    k_coef: float = 1e-3
    init_noise_scale: float = 1e-2
    init_noise_bias: float = 1e-1
    weight_decay: float = 1e-3
    lr: float = 1e-2
    inv_beta2: float = 5e-2
    lr_warmup_frac: float = 5e-2
    heaviside_temp: float = 1.0
    steps: int = 200
    batch: int = 16


CENTRES = MaskSettings()


class _Heaviside(torch.autograd.Function):
    """1 where the score is above 0; its derivative is that of a sigmoid."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(score)
        ctx.temperature = temperature
        return (score > 0).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (score,) = ctx.saved_tensors
        s = (score / ctx.temperature).sigmoid()
        return gradients[0] * s * (1 - s) / ctx.temperature, None


def learn_scores(
    loss_of: Callable[[Tensor, int], Tensor],
    size: int,
    settings: MaskSettings,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Scores in [-1, 1], (size,): the higher, the more a node is needed.

    Args:
        loss_of: task loss of gates (size,) of 0 and 1, differentiable; the second argument is the number of the step.
        size: number of nodes.
        settings: of the descent.
        seed: of the scores to begin with.
        on_step: called after each step.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, generator=generator) * settings.init_noise_scale + settings.init_noise_bias
    scores = noise.clamp(-1, 1).to(device, dtype).requires_grad_()
    betas = (0.9, 1 - settings.inv_beta2)
    optimizer = torch.optim.AdamW([scores], lr=settings.lr, betas=betas, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warmup_decay(step, settings.steps, settings.lr_warmup_frac)
        gates = _Heaviside.apply(scores, settings.heaviside_temp)
        loss = loss_of(gates, step) + settings.k_coef * gates.sum()
        (scores.grad,) = torch.autograd.grad(loss, scores)
        torch.nn.utils.clip_grad_norm_([scores], CLIP)
        optimizer.step()
        with torch.no_grad():
            scores.clamp_(-1, 1)
        on_step()
    return scores.detach()
