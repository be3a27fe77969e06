"""``csr_linear_active``: a sparse linear layer whose weight gradient also covers candidate positions (sparse mode)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._define import define
from .csr_linear import csr_linear_raw, csr_sddmm_raw
from .csr_pattern import csr_transpose
from .csr_sddmm import csr_sddmm_sums_raw
from .dtypes import autocast
from .reference import as_matrix

if TYPE_CHECKING:
    from ..formats import ActivePattern


def _forward(x: Tensor, active: Tensor, slots: Tensor, *rest: Any) -> Tensor:
    *support, _, active_col, bias = rest
    if active.shape != active_col.shape:
        raise ValueError(
            f"csr_linear_active: active must have shape {tuple(active_col.shape)}, got {tuple(active.shape)}"
        )
    return csr_linear_raw(x, active.index_select(0, slots), *support, bias, False)


def _fake(x: Tensor, active: Tensor, slots: Tensor, crow: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], crow.shape[0] - 1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, bias = inputs
    ctx.save_for_backward(*tensors)
    ctx.has_bias = bias is not None


def whole_pattern(crow: Tensor, col: Tensor, ccol: Tensor) -> tuple[Tensor, ...]:
    """The pattern of active positions as a csr_sddmm or bsr_sddmm takes it. Who wants no second derivative need not
    have its transpose: ``ccol``, of the support, then only tells how many columns there are."""
    if torch.is_grad_enabled():
        return crow, col, *csr_transpose(crow, col, ccol.shape[0] - 1)
    empty = col.new_empty(0)
    return crow, col, ccol, empty, empty


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, active, slots, *support, active_crow, active_col = ctx.saved_tensors
    dx = dactive = dbias = None
    needs_dbias = ctx.has_bias and ctx.needs_input_grad[10]
    if ctx.needs_input_grad[0]:
        dx = csr_linear_raw(grad, active.index_select(0, slots), *support, None, True)
    if ctx.needs_input_grad[1]:
        active_pattern = whole_pattern(active_crow, active_col, support[2])
        if needs_dbias:
            dactive, dbias = csr_sddmm_sums_raw(grad, x, *active_pattern)
        else:
            dactive = csr_sddmm_raw(grad, x, *active_pattern)
    elif needs_dbias:
        dbias = as_matrix(grad).sum(0, dtype=active.dtype)
    return dx, dactive, *[None] * 8, dbias


csr_linear_active_raw = define(
    "csr_linear_active(Tensor x, Tensor active, Tensor slots, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, Tensor active_crow, Tensor active_col, Tensor? bias) -> Tensor",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    composite=_forward,
)


def csr_linear_active(x: Tensor, active: Tensor, pattern: "ActivePattern", bias: Tensor | None = None) -> Tensor:
    """``csr_linear`` with the values of the support, and a gradient for all active positions.

    The forward pass and the gradient of ``x`` cost what the support costs; the gradient of ``active`` is a
    ``csr_sddmm`` over the support and the candidates beside it, ``dY.T @ X`` at those positions.

    Args:
        x: (..., K), float32, bfloat16 or float64; on a GPU also float16.
        active: (active), float32 (float64 where x is); what it holds outside of the support does not enter the output.
        pattern: the active positions, and which of them are the support.
        bias: (N) or None.

    Returns:
        (..., N), with gradients to ``x``, ``active`` and ``bias``.

    Raises:
        ValueError: ``active`` does not have the length of ``pattern``.
        RuntimeError: another shape or dtype does not fit; the message names the argument.
    """
    return csr_linear_active_raw(
        autocast(x),
        active,
        pattern.slots,
        *pattern.support.tensors,
        pattern.crow_indices,
        pattern.col_indices,
        bias,
    )
