"""``adamw_select_``: one step of sparse mode on several matrices, in place."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    "adamw_select_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor[] joined, Tensor[] steps, Tensor(d!)[] in_supports, Tensor[] active_crows, Tensor[] active_cols, "
    "Tensor(e!)[] slots, Tensor(f!)[] crows, Tensor(g!)[] cols, Tensor(h!)[] ccols, Tensor(i!)[] rows, "
    "Tensor(j!)[] perms, int[] floors, int[] axes, Tensor lr, Tensor grad_scale, float beta1, float candidate_beta1, "
    "float beta2, float eps, float weight_decay) -> Tensor nan_at",
    fake=_fake,
)


@dataclass(frozen=True, eq=False)
class ActiveMatrix:
    """A matrix as ``adamw_select_`` sees it: its active positions, in the order of a CSR pattern."""

    weight: Tensor  # (active) 0 outside of the support
    grad: Tensor  # (active) only read
    exp_avg: Tensor  # (active)
    exp_avg_sq: Tensor  # (active)
    joined: Tensor  # (active) of the weight's dtype: the step after which a position became active; only read
    step: Tensor  # float32 scalar: the number of this step counted from 1; only read
    in_support: Tensor  # (active) bool
    active_crow: Tensor  # (N + 1) only read
    active_col: Tensor  # (active) only read
    slots: Tensor  # (nnz) written: which active positions the support is
    pattern: "Pattern"  # written: the support
    floor: int
    axis: int | None


def adamw_select_(
    matrices: Sequence[ActiveMatrix],
    *,
    lr: Tensor,
    grad_scale: Tensor,
    betas: tuple[float, float],
    candidate_beta1: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Adam on the active positions of several matrices, and a new support for each, all in place.

    What :func:`adamw_project_` does to a dense matrix, restricted to a set of active positions: Adam on
    ``grad * grad_scale``; the ``k = pattern.nnz`` largest magnitudes, ``floor`` of every row (axis 0) or column
    (axis 1) first, become the support; decay of what is kept, zeros elsewhere; the support's pattern in both layouts.
    Outside of the support the first moment decays with ``candidate_beta1``; of a position that became active later
    (``joined > 0``) the second moment is corrected for its own age and the first one not at all. With every position
    active from the beginning and ``candidate_beta1 = betas[0]`` it equals :func:`adamw_project_` bit for bit.

    Args:
        matrices: all float32 or all float64, with indices of one dtype; see :class:`ActiveMatrix`.
        lr: float64 scalar.
        grad_scale: float64 scalar that multiplies every gradient.
        betas, candidate_beta1, eps, weight_decay: Adam's constants; decay multiplies by ``1 - lr * weight_decay``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; or a matrix holds NaN after Adam. On a CPU it then keeps
            its support; on a GPU NaN counts as the largest magnitude and :func:`check_status` raises.
    """
    if not matrices:
        return
    weights, avgs, sqs = ([getattr(m, name) for m in matrices] for name in ("weight", "exp_avg", "exp_avg_sq"))
    in_supports, slots = [m.in_support for m in matrices], [m.slots for m in matrices]
    indices = [[m.pattern.tensors[i] for m in matrices] for i in range(5)]
    nan_at = _raw(
        [w.detach() for w in weights],
        [m.grad for m in matrices],
        avgs,
        sqs,
        [m.joined for m in matrices],
        [m.step for m in matrices],
        in_supports,
        [m.active_crow for m in matrices],
        [m.active_col for m in matrices],
        slots,
        *indices,
        [m.floor for m in matrices],
        [m.axis or 0 for m in matrices],
        lr,
        grad_scale,
        betas[0],
        candidate_beta1,
        betas[1],
        eps,
        weight_decay,
    )
    for changed in (weights, avgs, sqs, in_supports, slots, *indices):
        torch.autograd.graph.increment_version(changed)  # the kernel writes behind autograd's back
    report_nan("adamw_select_", nan_at)
