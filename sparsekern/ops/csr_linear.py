"""``csr_linear``: a linear layer whose weight is a sparse matrix."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._define import define
from .dtypes import autocast, value_dtype
from .reference import as_matrix

if TYPE_CHECKING:
    from ..formats import CSR


PATTERN = "Tensor crow, Tensor col, Tensor ccol, Tensor row, Tensor perm"


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
    needs_dx, needs_dvalues, *_, needs_dbias, _ = ctx.needs_input_grad
    dx = dvalues = dbias = None
    if needs_dx and needs_dvalues and not ctx.transposed:
        dx, dvalues = _linear_backward_raw(grad, x, values, *pattern)
    elif needs_dx:
        dx = csr_linear_raw(grad, values, *pattern, None, not ctx.transposed)
    if needs_dvalues and dvalues is None:
        dvalues = csr_sddmm_raw(*((x, grad) if ctx.transposed else (grad, x)), *pattern)
    if ctx.has_bias and needs_dbias:
        dbias = as_matrix(grad).sum(0, dtype=values.dtype)
    return dx, dvalues, None, None, None, None, None, dbias, None


csr_linear_raw = define(
    f"csr_linear(Tensor x, Tensor values, {PATTERN}, Tensor? bias, bool transposed) -> Tensor",
    fake=_linear_fake,
    setup_context=_linear_setup,
    backward=_linear_backward,
)


def sddmm_fake(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor) -> Tensor:
    return a.new_empty(col.shape[0], dtype=value_dtype(a.dtype))


def _sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, *pattern = ctx.saved_tensors
    grad = grad.contiguous()
    da = csr_linear_raw(b, grad, *pattern, None, False) if ctx.needs_input_grad[0] else None
    db = csr_linear_raw(a, grad, *pattern, None, True) if ctx.needs_input_grad[1] else None
    return da, db, None, None, None, None, None


csr_sddmm_raw = define(
    f"csr_sddmm(Tensor a, Tensor b, {PATTERN}) -> Tensor",
    fake=sddmm_fake,
    setup_context=_sddmm_setup,
    backward=sddmm_backward,
)


def _both_fake(grad: Tensor, x: Tensor, values: Tensor, *pattern: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), values.new_empty(values.shape)


def _both_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _both_backward(ctx: Any, ddx: Tensor, ddvalues: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, values, *pattern = ctx.saved_tensors
    ddx, ddvalues = ddx.contiguous(), ddvalues.contiguous()
    dgrad = csr_linear_raw(ddx, values, *pattern, None, False) + csr_linear_raw(x, ddvalues, *pattern, None, False)
    dx = csr_linear_raw(grad, ddvalues, *pattern, None, True)
    return dgrad, dx, csr_sddmm_raw(grad, ddx, *pattern), None, None, None, None, None


_linear_backward_raw = define(
    f"csr_linear_backward(Tensor grad, Tensor x, Tensor values, {PATTERN}) -> (Tensor dx, Tensor dvalues)",
    fake=_both_fake,
    setup_context=_both_setup,
    backward=_both_backward,
)


def csr_linear(x: Tensor, w: "CSR", bias: Tensor | None = None) -> Tensor:
    """``y = x @ w.T + bias`` for a sparse ``w``.

    Args:
        x: (..., K), float32, bfloat16 or float64, on a GPU also float16; any strides. Autocast casts it.
        w: sparse (N, K), values float32 (float64 where x is).
        bias: (N) or None.

    Returns:
        (..., N), with gradients to ``x``, ``w.values`` and ``bias``. Exact in the sense of floating point: every
        stored position counts, rows without any give ``bias``.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    return csr_linear_raw(autocast(x), w.values, *w.pattern.tensors, bias, False)
