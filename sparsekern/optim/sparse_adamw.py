"""``SparseAdamW``: Adam on sparse weights, with the published step order (Gao et al. 2025, appendix A.2)."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ..formats import block_sides, compressed, flat_indices
from ..nn.weight import SparseWeight
from ..ops.adamw_project import adamw_project_
from ..ops.adamw_select import ActiveMatrix, adamw_select_
from ..ops.topk_project import topk_select
from .block_step import adamw_select_blocks_
from .parallel import average_gradients_, require_equal, world_size
from .topology import (
    REPLACED,
    active_flat,
    activities,
    at_positions,
    draw_candidates,
    over_entries,
    position_norms,
    replace_active_,
)

_OWN = ("named_weights", "gradient_rms", "_steps", "_is_averaged")  # attributes that torch does not know
_RMS_EPS = 1e-5  # keeps the normalisation finite when all gradients vanish
GRADIENTS = ("normalised", "clipped")


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters of ``model`` as groups for :class:`SparseAdamW`: sparse weights, decayed, and not decayed.

    Parameters with fewer than two dimensions are not decayed, nor are those that ``model.no_weight_decay()``, if there
    is such a method, names (qualified).
    """
    spared: set[str] = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    weights = {name: m for name, m in model.named_modules() if isinstance(m, SparseWeight)}
    owned = {id(w.parameter) for w in weights.values()}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in owned]
    decayed = [p for name, p in rest if p.dim() > 1 and name not in spared]
    undecayed = [p for name, p in rest if p.dim() <= 1 or name in spared]
    groups: list[dict[str, Any]] = [
        {"params": [w.parameter for w in weights.values()], "sparse_weights": weights},
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


def _require_kernels(weights: Iterable[SparseWeight]) -> None:
    """Before any of them is brought into active form."""
    for weight in weights:
        if weight.block is not None:
            block_sides(weight.block)


def _of_all_groups(name: str) -> Any:
    """An attribute that lives in the groups, so that ``state_dict`` has it."""

    def change(self: "SparseAdamW", value: Any) -> None:
        for group in self.param_groups:
            group[name] = value

    return property(lambda self: self.param_groups[0][name], change)


class SparseAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay for models with sparse weights.

    A step is, in this order: divide all gradients by their common root mean square, Adam, projection of each weight to
    its nonzeros, weight decay (Gao et al. 2025, appendix A.2).

    ``mode="exact"`` is the published rule: dense gradient, dense moments, and a projection of the whole matrix to its
    ``budget``; it brings the weights into master form.

    ``mode="sparse"`` is the same rule on active positions only: the support and ``candidates`` beside it. Time and
    memory grow with the nonzeros; it brings the weights into active form. Every ``refresh_every`` steps the candidates
    with the smallest steps are replaced by others, and the number of nonzeros follows ``budget``; in between it is
    fixed. What all other positions add to the gradient's norm is estimated from the candidates, whose probability to
    be drawn is known. :meth:`to_sparse_` goes over from exact to sparse.

    Args:
        params: the groups that :func:`param_groups` returns.
        lr: learning rate; change it through ``param_groups`` or an LR scheduler.
        mode: "exact" or "sparse".
        betas, eps, weight_decay: as published; ``eps`` is relative to gradients of unit root mean square.
        gradients: "normalised", as in the published script; or "clipped", as in the paper: divided only where their
            root mean square is above 1.
        candidates: candidates per nonzero; the more, the lower the loss, the longer the step and the larger the state.
            ``math.inf`` makes every position active, 0 freezes the support (and the norm of the gradient is then that
            of the support alone).
        refresh_every: steps from one refresh to the next, each of which replaces half of the candidates.
        candidate_beta1: replaces ``betas[0]`` for candidates, which need a steadier gradient to enter.
        seed: of the draws of candidates; equal seeds and gradients give equal ones.

    Attributes:
        gradient_rms: root mean square of the gradient over all parameters at the last step.

    Raises:
        ValueError: an argument out of range, or sparse parameters that did not come from :func:`param_groups`.
    """

    gradients = _of_all_groups("gradients")
    candidates = _of_all_groups("candidates")
    refresh_every = _of_all_groups("refresh_every")
    candidate_beta1 = _of_all_groups("candidate_beta1")
    seed = _of_all_groups("seed")

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        mode: str = "exact",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 0.1,
        weight_decay: float = 0.1,
        *,
        gradients: str = "normalised",
        candidates: float = 4.0,
        refresh_every: int = 20,
        candidate_beta1: float = 0.97,
        seed: int = 0,
    ) -> None:
        if mode not in ("exact", "sparse"):
            raise ValueError(f"mode must be 'exact' or 'sparse', got {mode!r}")
        if gradients not in GRADIENTS:
            raise ValueError(f"gradients must be {' or '.join(GRADIENTS)}, got {gradients!r}")
        if not lr >= 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        if not all(0 <= b < 1 for b in (*betas, candidate_beta1)):
            raise ValueError(f"betas and candidate_beta1 must be in [0, 1), got {betas} and {candidate_beta1}")
        if not (eps >= 0 and weight_decay >= 0 and candidates >= 0):
            raise ValueError(
                f"eps, weight_decay and candidates must not be negative, got {eps}, {weight_decay} and {candidates}"
            )
        if refresh_every < 1:
            raise ValueError(f"refresh_every must be positive, got {refresh_every}")
        self.named_weights: dict[str, SparseWeight] = {}
        groups, new = [], []
        for group in params:
            if not isinstance(group, dict):
                raise ValueError("params must be the groups that sparsekern.optim.param_groups(model) returns")
            group = dict(group)
            weights = group.pop("sparse_weights", {})
            if weights:
                if mode == "sparse":
                    _require_kernels(weights.values())
                new += [w for w in weights.values() if w.form != "active"]
                formed = [w.to_master_() if mode == "exact" else w.to_active_() for w in weights.values()]
                group["params"] = [w.parameter for w in formed]
                self.named_weights |= weights
            groups.append(group)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "gradients": gradients}
        defaults |= {
            "candidates": candidates,
            "refresh_every": refresh_every,
            "candidate_beta1": candidate_beta1,
            "seed": seed,
        }
        super().__init__(groups, defaults)
        self.gradient_rms = torch.zeros(())
        self.prepare()
        if mode == "sparse":
            for weight in new:
                self._draw_first(weight)

    @property
    def sparse_weights(self) -> list[SparseWeight]:
        return list(self.named_weights.values())

    @property
    def mode(self) -> str:
        """ "exact" or "sparse"."""
        return "sparse" if any(w.form == "active" for w in self.sparse_weights) else "exact"

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; gradients are left as they are, but for weights whose number of active positions changes.

        Raises:
            RuntimeError: the gradient is not finite, or a sparse weight holds NaN (on a GPU it is the reader of
                ``gradient_rms`` or ``ops.check_status`` who finds out, and nothing waits); or processes have diverged.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_weights()
        self.average_gradients_()
        self._is_averaged = False
        self.gradient_rms = self._gradient_rms()
        if self.gradient_rms.device.type == "cpu" and not torch.isfinite(self.gradient_rms):
            raise RuntimeError(f"SparseAdamW: the gradient is not finite (root mean square {self.gradient_rms})")
        size = self.gradient_rms + _RMS_EPS
        scale = 1 / (size if self.gradients == "normalised" else size.clamp(min=1))
        stepped = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            sparse = self._sparse(params)
            stepped += [(weight, group) for weight in sparse.values() if weight.form == "active"]
            masters = [w for w in sparse.values() if w.form == "master"]
            self._step_masters(group, [w for w in masters if w.block is None], scale)
            self._step_block_masters(group, [w for w in masters if w.block is not None], scale)
            self._step_active(group, [w for w in sparse.values() if w.form == "active"], scale)
            self._step_dense(group, [p for p in params if p not in sparse], scale)
        for weight in self.sparse_weights:
            if weight.form == "master" and weight.parameter.grad is None:
                weight.project_()
        self._steps += 1
        if self._is_refresh(self._steps):
            for weight, group in stepped:
                self._refresh(weight, group)
            if world_size() > 1:
                require_equal(self.named_weights)
        self._observe()
        return loss

    @torch.no_grad()
    def average_gradients_(self) -> None:
        """Average the gradients of sparse weights over all processes, once per step.

        :meth:`step` does it; call it before anything else that looks at gradients: ``GradScaler.unscale_`` and
        ``GradScaler.step``, ``clip_grad_norm_``.
        """
        if world_size() > 1 and not self._is_averaged:
            average_gradients_(self.sparse_weights)
        self._is_averaged = True

    @torch.no_grad()
    def to_sparse_(self) -> None:
        """Go on in sparse mode, after a step in exact mode, from its gradients and moments.

        Half of the first candidates are the positions off the support with the largest steps, which keep their moments;
        the others are drawn by the norms of the gradient's rows and columns, if it is still there. Each ``master``
        Parameter is replaced by an ``active`` one, here and in the model.
        """
        _require_kernels(self.sparse_weights)
        for group in self.param_groups:
            sparse = self._sparse(group["params"])
            for i, p in enumerate(group["params"]):
                if p in sparse and sparse[p].form == "master":
                    self._to_active(sparse[p], group)
                    group["params"][i] = sparse[p].parameter
        self._observe()

    def prepare(self) -> None:
        """Take up the state, after it was filled from a checkpoint by other means than :meth:`load_state_dict`."""
        steps = [int(s["step"]) for w in self.sparse_weights if (s := self.state.get(w.parameter))]
        self._steps = max(steps, default=0)
        self._is_averaged = False
        self._observe()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: torch's own would leave out what is not in every optimizer."""
        return super().__getstate__() | {name: getattr(self, name) for name in _OWN}

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._is_averaged = False
        for weight in self.sparse_weights:
            for leaf in weight.observed or ():
                leaf.grad = None

    def _check_weights(self) -> None:
        """Before anything is changed."""
        known = {p for group in self.param_groups for p in group["params"]}
        for name, weight in self.named_weights.items():
            if weight.parameter not in known:
                raise RuntimeError(
                    f"SparseAdamW: {name} has taken the {weight.form} form since the optimizer was built: load a model "
                    "before building its optimizer, with mode='sparse' for a checkpoint of sparse mode"
                )
            if weight.form == "active" and self._is_refresh(self._steps + 1) and weight.budget > len(weight.active):
                raise RuntimeError(
                    f"SparseAdamW: the budget of {name} must be at most its {len(weight.active)} active positions, got "
                    f"{weight.budget}"
                )

    def _sparse(self, params: Sequence[Tensor]) -> dict[Tensor, SparseWeight]:
        """The weights whose Parameters are among ``params``, in the order of these."""
        owners: dict[Tensor, SparseWeight] = {weight.parameter: weight for weight in self.sparse_weights}
        return {p: owners[p] for p in params if p in owners}

    # ---- the gradient

    def _gradient_rms(self) -> Tensor:
        """Root mean square of the gradient over all positions of all parameters, a missing one counting as zero."""
        params = [p for group in self.param_groups for p in group["params"]]
        sparse, grads, count = self._sparse(params), [], 0
        for p in params:
            weight = sparse.get(p)
            count += p.numel() if weight is None else weight.shape[0] * weight.shape[1]
            if p.grad is not None:
                is_active = weight is not None and weight.form == "active"
                grads.append(p.grad * over_entries(self._state(p)["norm_weight"], p) if is_active else p.grad)
        return torch.nn.utils.get_total_norm(grads) / math.sqrt(count)

    # ---- steps

    def _step_masters(self, group: dict[str, Any], weights: list[SparseWeight], scale: Tensor) -> None:
        masters = [w.master for w in weights]
        states = [self._state(p) for p in masters]
        patterns = [w.next_pattern(w.budget) for w in weights]
        if masters:
            torch._foreach_add_([s["step"] for s in states], 1)
            adamw_project_(
                masters,
                _grads(masters),
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [s["step"] for s in states],
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

    def _step_block_masters(self, group: dict[str, Any], weights: list[SparseWeight], scale: Tensor) -> None:
        self._step_dense(group, [w.master for w in weights], scale)  # the decay changes no order of norms
        for weight in weights:
            weight.project_()

    def _step_active(self, group: dict[str, Any], weights: list[SparseWeight], scale: Tensor) -> None:
        if not weights:
            return
        matrices = [self._active_matrix(weight) for weight in weights]
        torch._foreach_add_([m.step for m in matrices], 1)
        rule = {
            "lr": _scalar(group["lr"], scale.device),
            "grad_scale": scale.double(),
            "betas": group["betas"],
            "candidate_beta1": self.candidate_beta1,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
        }
        adamw_select_([m for m in matrices if m.weight.dim() == 1], **rule)
        for m in matrices:
            if m.weight.dim() == 3:
                adamw_select_blocks_(m, **rule)
        for weight, m in zip(weights, matrices, strict=True):
            weight.set_pattern_(m.pattern, m.slots)

    def _active_matrix(self, weight: SparseWeight) -> ActiveMatrix:
        state, where = self._state(weight.active), weight.active_pattern
        is_refresh = self._is_refresh(self._steps + 1)  # only then lengths change
        pattern = weight.next_pattern(weight.budget if is_refresh else weight.nnz)
        assert weight.active.grad is not None
        assert weight.in_support is not None
        return ActiveMatrix(
            weight=weight.active,
            grad=weight.active.grad,
            exp_avg=state["exp_avg"],
            exp_avg_sq=state["exp_avg_sq"],
            joined=state["joined"],
            step=state["step"],
            in_support=weight.in_support,
            active_crow=where.crow_indices,
            active_col=where.col_indices,
            slots=where.slots if pattern.nnz == weight.nnz else torch.empty_like(pattern.col_indices),
            pattern=pattern,
            floor=weight.floor,
            axis=weight.axis,
        )

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

    # ---- candidates

    def _is_refresh(self, step: int) -> bool:
        """Whether candidates are replaced after this step, counted from 1."""
        return (step - 1) % self.refresh_every == 0

    def _observe(self) -> None:
        """Have the activity of rows and columns measured where the coming step is a refresh."""
        for weight in self.sparse_weights:
            weight.observe_(weight.form == "active" and self._is_refresh(self._steps + 1))

    def _generator(self, weight: SparseWeight) -> torch.Generator:
        """Depends on the seed, the step and the place of the weight only, so that a resumed run draws the same."""
        place = next(i for i, w in enumerate(self.sparse_weights) if w is weight)
        seed = np.random.SeedSequence((self.seed, self._steps, place)).generate_state(1, np.uint64)[0]
        return torch.Generator(weight.device).manual_seed(int(seed >> np.uint64(1)))

    def _wanted(self, weight: SparseWeight) -> int:
        """How many candidates a weight should have."""
        return int(min(self.candidates * max(1, weight.nnz), weight.positions - weight.nnz))

    def _speed(self, weight: SparseWeight, beta1: float, group: dict[str, Any]) -> Tensor:
        """The magnitude of each position's last step, in units of the learning rate."""
        state = self._state(weight.parameter)
        beta2, step = group["betas"][1], state["step"].to(state["exp_avg"])
        joined = over_entries(state["joined"], weight.parameter) if "joined" in state else torch.zeros_like(step)
        first = torch.where(joined == 0, 1 - beta1**step, 1.0)
        root = (state["exp_avg_sq"] / (1 - beta2 ** (step - joined))).sqrt()
        speed = (state["exp_avg"].abs() / first / (root + group["eps"])).nan_to_num_(0.0)  # 0 / 0 before the first step
        return position_norms(weight, speed)

    def _draw_first(self, weight: SparseWeight) -> None:
        """Candidates for a support that has none, before anything was measured."""
        wanted, flat = self._wanted(weight), active_flat(weight)
        new = draw_candidates(weight, *activities(weight, (None, None)), flat, wanted, self._generator(weight))
        replace_active_(weight, self._state(weight.active), torch.arange(len(flat), device=flat.device), new)

    def _refresh(self, weight: SparseWeight, group: dict[str, Any]) -> None:
        state, wanted = self._state(weight.active), self._wanted(weight)
        assert weight.in_support is not None
        old = (~weight.in_support).nonzero().flatten()
        if wanted + weight.nnz < weight.positions:
            speed = self._speed(weight, self.candidate_beta1, group)[old]
            old = old[speed.argsort(descending=True, stable=True)[: wanted - int(REPLACED * wanted)]]
        kept = torch.cat([weight.active_pattern.slots.long(), old]).sort().values
        rows, cols = weight.observed or (None, None)
        norms = activities(weight, (rows if rows is None else rows.grad, cols if cols is None else cols.grad))
        taken, count = active_flat(weight)[kept], weight.nnz + wanted - len(kept)
        new = draw_candidates(weight, *norms, taken, count, self._generator(weight))
        replace_active_(weight, state, kept, new)

    def _to_active(self, weight: SparseWeight, group: dict[str, Any]) -> None:
        master, state = weight.master, self._state(weight.master)
        support, wanted = weight.pattern.flat_indices(), self._wanted(weight)
        speed = self._speed(weight, group["betas"][0], group)
        speed.view(-1)[support] = 0
        best = flat_indices(*topk_select(speed, wanted - int(REPLACED * wanted)), weight.grid[1])
        flat = torch.cat([support, best]).unique()  # where nothing moves, `best` may hold parts of the support
        slots = torch.searchsorted(flat, support)
        kept_state = {name: at_positions(weight, state[name], flat) for name in ("exp_avg", "exp_avg_sq")}
        grad = torch.zeros_like(master) if master.grad is None else master.grad
        rows, cols = (torch.linalg.vector_norm(grad, dim=dim).square() for dim in (1, 0))
        norms = activities(weight, (rows, cols))
        count = len(support) + wanted - len(flat)
        new = draw_candidates(weight, *norms, flat, count, self._generator(weight))
        weight.to_active_()
        del self.state[master]
        weight.set_active_(*compressed(flat, weight.grid), at_positions(weight, master.detach(), flat), slots)
        state = self.state[weight.active] = {"step": state["step"], **kept_state}
        state |= {"joined": master.new_zeros(len(flat)), "norm_weight": master.new_ones(len(flat))}
        replace_active_(weight, state, torch.arange(len(flat), device=flat.device), new)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            if any(w.form == "active" for w in self._sparse([p]).values()):
                state["joined"] = p.new_zeros(len(p))  # the step after which a position became active
                state["norm_weight"] = p.new_ones(len(p))  # see topology.Draws
        return state
