"""What sparse mode is compared with: other rules to move a sparse pattern, and other ways to know the gradient's norm.

All of them know the dense gradient, which is what sparse mode does without: they are for studies, not for speed.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import SparseEmbedding, SparseLinear, SparseWeight
from ..optim import SparseAdamW
from ..optim.topology import Draws, active_flat, replace_active_

PROBES = 16  # columns of the random sketch


class DenseGradients:
    """The dense gradient of every sparse weight of a model: that of a matrix of zeros added to it."""

    def __init__(self, model: nn.Module) -> None:
        self.zeros: dict[SparseWeight, Tensor] = {}
        for module in model.modules():
            if isinstance(module, SparseLinear | SparseEmbedding):
                zeros = torch.zeros(module.weight.shape, dtype=module.weight.dtype, requires_grad=True)
                self.zeros[module.weight] = zeros
                product = F.linear if isinstance(module, SparseLinear) else F.embedding
                module.register_forward_hook(lambda _, args, y, f=product, z=zeros: y + f(args[0], z))

    def __getitem__(self, weight: SparseWeight) -> Tensor:
        grad = self.zeros[weight].grad
        assert grad is not None
        return grad

    def clear(self) -> None:
        for zeros in self.zeros.values():
            zeros.grad = None


class OracleAdamW(SparseAdamW):
    """Sparse mode with the true norm of the gradient."""

    model: nn.Module  # to be set
    dense: DenseGradients | None = None

    def to_sparse_(self) -> None:
        super().to_sparse_()
        self.dense = DenseGradients(self.model)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        if self.dense is not None:
            self.dense.clear()

    def _squared_norm(self, grad: Tensor) -> Tensor:
        """Of the dense gradient of one weight."""
        return grad.square().sum()

    def _gradient_rms(self) -> Tensor:
        if self.dense is None:
            return super()._gradient_rms()
        params = [p for group in self.param_groups for p in group["params"]]
        sparse = self._sparse(params)
        squares = [p.grad.square().sum() for p in params if p not in sparse and p.grad is not None]
        squares += [self._squared_norm(self.dense[weight]) for weight in sparse.values()]
        count = sum(p.numel() for p in params if p not in sparse)
        count += sum(w.shape[0] * w.shape[1] for w in sparse.values())
        return (torch.stack(squares).sum() / count).sqrt()


class SketchAdamW(OracleAdamW):
    """Sparse mode with the norm from a random sketch ``dW @ Z``, as the gradient of a low-rank adapter would give it.

    Taken every ``every`` steps; in between the last one holds. ``decay`` averages its square over the steps.
    """

    every = 1
    decay = 0.0
    _estimate: Tensor | None = None

    def _squared_norm(self, grad: Tensor) -> Tensor:
        signs = torch.randint(2, (grad.shape[1], PROBES), generator=self._probe_generator, dtype=grad.dtype)
        return (grad @ (2 * signs - 1)).square().sum() / PROBES

    def _gradient_rms(self) -> Tensor:
        if self.dense is None:
            return super()._gradient_rms()
        if self._estimate is None or self._steps % self.every == 0:
            self._probe_generator = torch.Generator().manual_seed(self._steps)
            square = super()._gradient_rms().square()
            old = square if self._estimate is None else self._estimate
            self._estimate = self.decay * old + (1 - self.decay) * square
        return self._estimate.sqrt()


class SparseSketchAdamW(SketchAdamW):
    every = 10


class SmoothSketchAdamW(SketchAdamW):
    decay = 0.9


class SupportNormAdamW(SparseAdamW):
    """Sparse mode that counts the gradient of all positions that are not active as zero."""

    def _gradient_rms(self) -> Tensor:
        for weight in self.sparse_weights:
            if weight.form == "active":
                self._state(weight.active)["norm_weight"].fill_(1)
        return super()._gradient_rms()


class LazyAdamW(SparseAdamW):
    """Until it goes over to sparse mode, the gradient off the support is taken every few steps only, and held."""

    every = 4
    _held: dict[SparseWeight, Tensor]

    def step(self, closure: Any = None) -> Any:
        grads = {w: w.master.grad for w in self.sparse_weights if w.form == "master" and w.master.grad is not None}
        if self._steps % self.every == 0:
            self._held = {weight: grad.clone() for weight, grad in grads.items()}
        for weight, grad in grads.items():
            support = weight.pattern.flat_indices()
            now = grad.flatten()[support]
            grad.copy_(self._held[weight]).view(-1)[support] = now
        return super().step(closure)


class FrozenAdamW(OracleAdamW):
    """The support never changes."""

    def to_sparse_(self) -> None:
        self.candidates = 0.0
        super().to_sparse_()

    def _refresh(self, weight: SparseWeight, group: dict[str, Any]) -> None:
        pass


class SetAdamW(FrozenAdamW):
    """SET (Mocanu et al. 2018): now and then the smallest weights make room for random positions.

    ``fraction`` of the support at first, falling to 0 with a cosine (Evci et al. 2020), every ``update_every`` steps.
    """

    fraction = 0.1
    update_every = 25
    steps = 0  # of the run

    def to_sparse_(self) -> None:
        super().to_sparse_()
        self.refresh_every = self.update_every

    def _fraction(self) -> float:
        return self.fraction / 2 * (1 + math.cos(math.pi * self._steps / self.steps))

    def _refresh(self, weight: SparseWeight, group: dict[str, Any]) -> None:
        count, state, flat = int(self._fraction() * weight.nnz), self._state(weight.active), active_flat(weight)
        kept = weight.active.abs().argsort(descending=True, stable=True)[: weight.nnz - count].sort().values
        kept = self._with_floor(weight, kept)
        grown = self._grow(weight, flat[kept], weight.nnz - len(kept))
        replace_active_(weight, state, kept, Draws(grown.sort().values, torch.ones(len(grown))))
        state["joined"].zero_()  # no candidates: moments that were reset, as in any Adam
        where = weight.active_pattern
        everything = torch.arange(len(weight.active))
        weight.set_active_(where.crow_indices, where.col_indices, weight.active.data, everything)
        weight._set_pattern(where.crow_indices.clone(), where.col_indices.clone())

    def _with_floor(self, weight: SparseWeight, kept: Tensor) -> Tensor:
        """``kept``, and of each neuron that this would leave below its floor, all that it had."""
        if not weight.floor or weight.axis is None:
            return kept
        k = weight.shape[1]
        flat = active_flat(weight)
        neuron = flat.div(k, rounding_mode="floor") if weight.axis == 0 else flat % k
        counts = torch.bincount(neuron[kept], minlength=weight.shape[weight.axis])
        poor = (counts < weight.floor)[neuron]
        return torch.cat([kept, poor.nonzero().flatten()]).unique()

    def _grow(self, weight: SparseWeight, taken: Tensor, count: int) -> Tensor:
        generator, total = self._generator(weight), weight.shape[0] * weight.shape[1]
        free = torch.ones(total, dtype=torch.bool)
        free[taken] = False
        at = free.nonzero().flatten()
        return at[torch.randperm(len(at), generator=generator)[:count]]


class RigLAdamW(SetAdamW):
    """RigL (Evci et al. 2020): SET that grows where the dense gradient of the step is largest."""

    def _grow(self, weight: SparseWeight, taken: Tensor, count: int) -> Tensor:
        assert self.dense is not None
        grad = self.dense[weight].abs().flatten()
        grad[taken] = -1
        return grad.topk(count).indices
