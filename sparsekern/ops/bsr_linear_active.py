"""``bsr_linear_active``: a layer of dense blocks whose weight gradient also covers candidates (sparse mode)."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._define import define
from .bsr_linear import bsr_linear_raw, bsr_sddmm_raw
from .csr_linear_active import whole_pattern
from .dtypes import autocast
from .reference import as_matrix

if TYPE_CHECKING:
    from ..formats import ActivePattern


def _forward(x: Tensor, active: Tensor, slots: Tensor, *rest: Any) -> Tensor:
    *support, _, active_col, bias, out_features = rest
    if active.dim() != 3 or len(active) != len(active_col):
        raise ValueError(
            f"bsr_linear_active: active must have shape ({len(active_col)}, *block), got {tuple(active.shape)}"
        )
    return bsr_linear_raw(x, active.index_select(0, slots), *support, bias, out_features, False)


def _fake(x: Tensor, active: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], rest[-1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, bias, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, active, slots, *support, active_crow, active_col = ctx.saved_tensors
    dx = dactive = dbias = None
    if ctx.needs_input_grad[0]:
        dx = bsr_linear_raw(grad, active.index_select(0, slots), *support, None, x.shape[-1], True)
    if ctx.needs_input_grad[1]:
        dactive = bsr_sddmm_raw(grad, x, *whole_pattern(active_crow, active_col, support[2]), *active.shape[1:])
    if ctx.has_bias and ctx.needs_input_grad[10]:
        dbias = as_matrix(grad).sum(0, dtype=active.dtype)
    return dx, dactive, *[None] * 8, dbias, None


bsr_linear_active_raw = define(
    "bsr_linear_active(Tensor x, Tensor active, Tensor slots, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, Tensor active_crow, Tensor active_col, Tensor? bias, SymInt out_features) -> Tensor",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    composite=_forward,
)


def bsr_linear_active(
    x: Tensor, active: Tensor, pattern: "ActivePattern", out_features: int, bias: Tensor | None = None
) -> Tensor:
    """``bsr_linear`` with the blocks of the support, and a gradient for all active blocks.

    Args:
        x: (..., K), float32, bfloat16 or float64; on a GPU also float16.
        active: (active, *block), float32 (float64 where x is); what it holds outside of the support does not enter the
            output.
        pattern: the active positions of the grid, and which of them are the support.
        out_features: N.
        bias: (N) or None.

    Returns:
        (..., N), with gradients to ``x``, ``active`` and ``bias``.

    Raises:
        ValueError: ``active`` does not have the length of ``pattern``.
        RuntimeError: another shape or dtype does not fit; the message names the argument.
    """
    where = (pattern.slots, *pattern.support.tensors, pattern.crow_indices, pattern.col_indices)
    return bsr_linear_active_raw(autocast(x), active, *where, bias, out_features)
