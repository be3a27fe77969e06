"""``csr_sddmm``: the entries of a dense product at the positions of a pattern."""

from typing import TYPE_CHECKING

from torch import Tensor

from .csr_linear import csr_sddmm_raw  # csr_linear and csr_sddmm are each other's gradients

if TYPE_CHECKING:
    from ..formats import CSR


def csr_sddmm(a: Tensor, b: Tensor, w: "CSR") -> Tensor:
    """``v[p] = sum_t a[t, row p] * b[t, col p]`` over the nonzeros p of ``w``: ``(a.T @ b)`` sampled at its pattern.

    Args:
        a: (T, N), or any leading dimensions, float32, bfloat16 or float64; on a GPU also float16.
        b: (T, K), the same leading dimensions and dtype.
        w: sparse (N, K); only its pattern is read.

    Returns:
        (nnz), float32 (float64 where a is), with gradients to ``a`` and ``b``.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    return csr_sddmm_raw(a, b, *w.pattern.tensors)
