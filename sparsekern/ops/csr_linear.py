"""``csr_linear``: a linear layer whose weight is a sparse matrix."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._define import define
from .reference import as_matrix

if TYPE_CHECKING:
    from ..formats import CSR

_PATTERN = "Tensor crow, Tensor col, Tensor ccol, Tensor row, Tensor perm"


def _linear_fake(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    row: Tensor,
    perm: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], (ccol if transposed else crow).shape[0] - 1)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, *pattern, bias, transposed = inputs
    ctx.save_for_backward(x, values, *pattern)
    ctx.transposed = transposed
    ctx.has_bias = bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern = ctx.saved_tensors
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = csr_linear_raw(grad, values, *pattern, None, not ctx.transposed)
    if ctx.needs_input_grad[1]:
        dvalues = csr_sddmm_raw(*((x, grad) if ctx.transposed else (grad, x)), *pattern)
    if ctx.has_bias and ctx.needs_input_grad[7]:
        dbias = as_matrix(grad).sum(0)
    return dx, dvalues, None, None, None, None, None, dbias, None


csr_linear_raw = define(
    f"csr_linear(Tensor x, Tensor values, {_PATTERN}, Tensor? bias, bool transposed) -> Tensor",
    fake=_linear_fake,
    setup_context=_linear_setup,
    backward=_linear_backward,
)


def _sddmm_fake(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor) -> Tensor:
    return a.new_empty(col.shape[0])


def _sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, *pattern = ctx.saved_tensors
    grad = grad.contiguous()
    da = csr_linear_raw(b, grad, *pattern, None, False) if ctx.needs_input_grad[0] else None
    db = csr_linear_raw(a, grad, *pattern, None, True) if ctx.needs_input_grad[1] else None
    return da, db, None, None, None, None, None


csr_sddmm_raw = define(
    f"csr_sddmm(Tensor a, Tensor b, {_PATTERN}) -> Tensor",
    fake=_sddmm_fake,
    setup_context=_sddmm_setup,
    backward=_sddmm_backward,
)


def csr_linear(x: Tensor, w: "CSR", bias: Tensor | None = None) -> Tensor:
    """``y = x @ w.T + bias`` for a sparse ``w``.

    Args:
        x: (..., K), float32 or float64, any strides.
        w: sparse (N, K), values of x's dtype.
        bias: (N) or None.

    Returns:
        (..., N), with gradients to ``x``, ``w.values`` and ``bias``. Exact in the sense of floating point: every
        stored position counts, rows without any give ``bias``.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    return csr_linear_raw(x, w.values, *w.pattern.tensors, bias, False)
