"""``bsr_linear``: a linear layer whose weight consists of dense blocks."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._define import define
from .csr_linear import PATTERN
from .dtypes import autocast, value_dtype
from .reference import as_matrix

if TYPE_CHECKING:
    from ..formats import BSR

BLOCK_SIDES = (16, 32, 64, 128)  # that there are kernels for


def _linear_fake(x: Tensor, values: Tensor, *rest: Any) -> Tensor:
    *_, out_features, _ = rest
    return x.new_empty(*x.shape[:-1], out_features)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, *pattern, bias, _, transposed = inputs
    ctx.save_for_backward(x, values, *pattern)
    ctx.transposed = transposed
    ctx.has_bias = bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern = ctx.saved_tensors
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = bsr_linear_raw(grad, values, *pattern, None, x.shape[-1], not ctx.transposed)
    if ctx.needs_input_grad[1]:
        dvalues = bsr_sddmm_raw(*((x, grad) if ctx.transposed else (grad, x)), *pattern, *values.shape[1:])
    if ctx.has_bias and ctx.needs_input_grad[7]:
        dbias = as_matrix(grad).sum(0, dtype=values.dtype)
    return dx, dvalues, None, None, None, None, None, dbias, None, None


bsr_linear_raw = define(
    f"bsr_linear(Tensor x, Tensor values, {PATTERN}, Tensor? bias, SymInt out_features, bool transposed) -> Tensor",
    fake=_linear_fake,
    setup_context=_linear_setup,
    backward=_linear_backward,
)


def _sddmm_fake(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, *rest: Any) -> Tensor:
    *_, block_rows, block_cols = rest
    return a.new_empty(col.shape[0], block_rows, block_cols, dtype=value_dtype(a.dtype))


def _sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, _ = inputs
    ctx.save_for_backward(*tensors)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, *pattern = ctx.saved_tensors
    grad = grad.contiguous()
    da = bsr_linear_raw(b, grad, *pattern, None, a.shape[-1], False) if ctx.needs_input_grad[0] else None
    db = bsr_linear_raw(a, grad, *pattern, None, b.shape[-1], True) if ctx.needs_input_grad[1] else None
    return da, db, *[None] * 7


bsr_sddmm_raw = define(
    f"bsr_sddmm(Tensor a, Tensor b, {PATTERN}, SymInt block_rows, SymInt block_cols) -> Tensor",
    fake=_sddmm_fake,
    setup_context=_sddmm_setup,
    backward=_sddmm_backward,
)


def bsr_linear(x: Tensor, w: "BSR", bias: Tensor | None = None) -> Tensor:
    """``y = x @ w.T + bias`` for a ``w`` of dense blocks.

    Args:
        x: (..., K), float32, bfloat16 or float64, on a GPU also float16; any strides. Autocast casts it.
        w: block-sparse (N, K), values float32 (float64 where x is).
        bias: (N) or None.

    Returns:
        (..., N), with gradients to ``x``, ``w.values`` and ``bias``.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    return bsr_linear_raw(autocast(x), w.values, *w.pattern.tensors, bias, w.shape[0], False)


def dds(a: Tensor, w: "BSR", *, transpose: bool = False) -> Tensor:
    """Dense = dense @ sparse: ``a @ w``, or with ``transpose`` ``a @ w.T``.

    Args:
        a: (..., N), or with ``transpose`` (..., K); as in :func:`bsr_linear`.
        w: block-sparse (N, K).

    Returns:
        (..., K), or with ``transpose`` (..., N), with gradients to ``a`` and ``w.values``.
    """
    return bsr_linear_raw(autocast(a), w.values, *w.pattern.tensors, None, w.shape[not transpose], not transpose)


def dsd(w: "BSR", b: Tensor, *, transpose: bool = False) -> Tensor:
    """Dense = sparse @ dense: ``w @ b``, or with ``transpose`` ``w.T @ b``.

    Args:
        w: block-sparse (N, K).
        b: (K, M), or with ``transpose`` (N, M).

    Returns:
        (N, M), or with ``transpose`` (K, M), with gradients to ``b`` and ``w.values``.
    """
    return dds(b.T, w, transpose=not transpose).T
