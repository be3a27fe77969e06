"""``bsr_sddmm``: the blocks of a dense product at the positions of a pattern."""

from typing import TYPE_CHECKING

from torch import Tensor

from .bsr_linear import bsr_sddmm_raw  # bsr_linear is its gradient
from .dtypes import autocast

if TYPE_CHECKING:
    from ..formats import BSR


def bsr_sddmm(a: Tensor, b: Tensor, w: "BSR") -> Tensor:
    """``(a.T @ b)`` at the blocks of ``w``.

    Args:
        a: (T, N), or any leading dimensions, float32, bfloat16 or float64; on a GPU also float16. Autocast casts both.
        b: (T, K), the same leading dimensions and dtype.
        w: block-sparse (N, K); only its pattern is read.

    Returns:
        (blocks, *block), float32 (float64 where a is), with gradients to ``a`` and ``b``; 0 where a block reaches over
        the edge of the matrix.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    return bsr_sddmm_raw(autocast(a), autocast(b), *w.pattern.tensors, *w.block)


def sdd(a: Tensor, b: Tensor, w: "BSR") -> "BSR":
    """Sparse = dense @ dense: ``a @ b`` at the blocks of ``w``.

    Args:
        a: (N, M).
        b: (M, K), the same dtype.
        w: block-sparse (N, K); only its pattern is read.

    Returns:
        Block-sparse (N, K), with gradients to ``a`` and ``b``.
    """
    return w.with_values(bsr_sddmm(a.T, b, w))
