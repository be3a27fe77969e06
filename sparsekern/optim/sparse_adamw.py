"""``SparseAdamW``: Adam on sparse weights, with the published step order (Gao et al. 2025, appendix A.2)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ..nn.weight import SparseWeight
from ..ops.adamw_project import adamw_project_

_RMS_EPS = 1e-5  # keeps the normalisation finite when all gradients vanish


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters of ``model`` as groups for :class:`SparseAdamW`: sparse weights, decayed, and not decayed.

    Parameters with fewer than two dimensions are not decayed, nor are those that ``model.no_weight_decay()``, if there
    is such a method, names (qualified).
    """
    spared: set[str] = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    weights = [m for m in model.modules() if isinstance(m, SparseWeight)]
    owned = {id(w.parameter) for w in weights}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in owned]
    decayed = [p for name, p in rest if p.dim() > 1 and name not in spared]
    undecayed = [p for name, p in rest if p.dim() <= 1 or name in spared]
    groups: list[dict[str, Any]] = [
        {"params": [w.parameter for w in weights], "sparse_weights": weights},
        {"params": decayed},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _scalar(number: float | Tensor, device: torch.device) -> Tensor:
    """A float64 scalar on ``device``, without a copy from host memory that a GPU would have to wait for."""
    if isinstance(number, Tensor):
        return number.to(device, torch.float64)
    return torch.full((), number, dtype=torch.float64, device=device)


def _grads(params: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


class SparseAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay for models with sparse weights.

    ``mode="exact"`` is the published rule: dense gradient, dense moments, and after every step a projection of each
    weight to its ``budget`` of nonzeros; it brings the weights into master form. A step is, in this order: divide all
    gradients by their common root mean square, Adam, projection, weight decay.

    Args:
        params: the groups that :func:`param_groups` returns.
        lr: learning rate; change it through ``param_groups`` or an LR scheduler.
        mode: "exact".
        betas, eps, weight_decay: as published; ``eps`` is relative to gradients of unit root mean square.

    Raises:
        ValueError: an argument out of range, or sparse parameters that did not come from :func:`param_groups`.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        mode: str = "exact",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 0.1,
        weight_decay: float = 0.1,
    ) -> None:
        if mode != "exact":
            raise ValueError(f"mode must be 'exact', got {mode!r}")
        if not lr >= 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        if not all(0 <= b < 1 for b in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        if not (eps >= 0 and weight_decay >= 0):
            raise ValueError(f"eps and weight_decay must not be negative, got {eps} and {weight_decay}")
        self.sparse_weights: list[SparseWeight] = []
        groups = []
        for group in params:
            if not isinstance(group, dict):
                raise ValueError("params must be the groups that sparsekern.optim.param_groups(model) returns")
            group = dict(group)
            weights = group.pop("sparse_weights", [])
            if weights:
                group["params"] = [w.to_master_().parameter for w in weights]
                self.sparse_weights += weights
            groups.append(group)
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; gradients are left as they are.

        Raises:
            RuntimeError: a sparse weight holds NaN; on a GPU it is ``ops.check_status`` that raises, and nothing waits.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = 1 / (self.gradient_rms() + _RMS_EPS)
        owners = {id(weight.parameter): weight for weight in self.sparse_weights}
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            self._step_sparse(group, [owners[id(p)] for p in params if id(p) in owners], scale)
            self._step_dense(group, [p for p in params if id(p) not in owners], scale)
        for weight in self.sparse_weights:
            if weight.parameter.grad is None:
                weight.project_()
        return loss

    def gradient_rms(self) -> Tensor:
        """Root mean square of the gradient over all parameters, a missing gradient counting as zero."""
        params = [p for group in self.param_groups for p in group["params"]]
        return torch.nn.utils.get_total_norm(_grads(params)) / math.sqrt(sum(p.numel() for p in params))

    def _step_sparse(self, group: dict[str, Any], weights: list[SparseWeight], scale: Tensor) -> None:
        masters = [w.master for w in weights]
        states = [self._state(p) for p in masters]
        patterns = [w.next_pattern() for w in weights]
        if masters:
            steps = [s["step"] for s in states]
            torch._foreach_add_(steps, 1)
            adamw_project_(
                masters,
                _grads(masters),
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                steps,
                patterns,
                floors=[w.floor for w in weights],
                axes=[w.axis for w in weights],
                lr=_scalar(group["lr"], scale.device),
                grad_scale=scale.double(),
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )
        for weight, pattern in zip(weights, patterns, strict=True):
            weight.set_pattern_(pattern)

    def _step_dense(self, group: dict[str, Any], params: list[Tensor], scale: Tensor) -> None:
        states = [self._state(p) for p in params]
        beta1, beta2 = group["betas"]
        if params:
            adam(
                params,
                list(torch._foreach_mul(_grads(params), scale)),
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [s["step"] for s in states],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        return state
