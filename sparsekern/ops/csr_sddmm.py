"""``csr_sddmm``: the entries of a dense product at the positions of a pattern."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._define import define
from .csr_linear import PATTERN, csr_sddmm_raw, sddmm_backward, sddmm_fake  # csr_linear is its gradient
from .dtypes import autocast, value_dtype
from .reference import as_matrix

if TYPE_CHECKING:
    from ..formats import CSR


def _sums_fake(a: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return sddmm_fake(a, *rest), a.new_empty(a.shape[-1], dtype=value_dtype(a.dtype))


def sums_composite(a: Tensor, b: Tensor, *pattern: Tensor) -> tuple[Tensor, Tensor]:
    return csr_sddmm_raw(a, b, *pattern), as_matrix(a).sum(0, dtype=value_dtype(a.dtype))


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _sums_backward(ctx: Any, grad: Tensor, sums_grad: Tensor) -> tuple[Tensor | None, ...]:
    da, *rest = sddmm_backward(ctx, grad)
    return None if da is None else da + sums_grad.to(da.dtype), *rest


csr_sddmm_sums_raw = define(
    f"csr_sddmm_sums(Tensor a, Tensor b, {PATTERN}) -> (Tensor values, Tensor sums)",
    fake=_sums_fake,
    setup_context=_sums_setup,
    backward=_sums_backward,
    composite=sums_composite,  # the CPU has one kernel for both
)


def csr_sddmm(a: Tensor, b: Tensor, w: "CSR") -> Tensor:
    """``v[p] = sum_t a[t, row p] * b[t, col p]`` over the nonzeros p of ``w``: ``(a.T @ b)`` sampled at its pattern.

    Args:
        a: (T, N), or any leading dimensions, float32, bfloat16 or float64; on a GPU also float16. Autocast casts both.
        b: (T, K), the same leading dimensions and dtype.
        w: sparse (N, K); only its pattern is read.

    Returns:
        (nnz), float32 (float64 where a is), with gradients to ``a`` and ``b``.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    return csr_sddmm_raw(autocast(a), autocast(b), *w.pattern.tensors)
