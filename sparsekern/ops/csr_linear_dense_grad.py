"""``csr_linear_dense_grad``: a sparse linear layer whose weight gradient is dense (exact mode)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._define import define
from .csr_linear import csr_linear_raw
from .csr_pattern import csr_gather
from .dtypes import autocast, without_autocast
from .reference import as_matrix

if TYPE_CHECKING:
    from ..formats import Pattern


def _forward(x: Tensor, master: Tensor, *rest: Any) -> Tensor:
    *pattern, bias = rest
    shape = (pattern[0].shape[0] - 1, pattern[2].shape[0] - 1)
    if master.shape != shape:
        raise ValueError(f"csr_linear_dense_grad: master must have shape {shape}, got {tuple(master.shape)}")
    return csr_linear_raw(x, csr_gather(master, pattern[0], pattern[1]), *pattern, bias, False)


def _fake(x: Tensor, master: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], master.shape[0])


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in ``dtype``, which may be wider than theirs, summed in no less."""
    if a.dtype != dtype and a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    with without_autocast(a):
        return a.to(dtype) @ b.to(dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, master, *pattern, bias = inputs
    ctx.save_for_backward(x, master, *pattern)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, master, *pattern = ctx.saved_tensors
    dx = dmaster = dbias = None
    if ctx.needs_input_grad[0]:
        dx = csr_linear_raw(grad, csr_gather(master, pattern[0], pattern[1]), *pattern, None, True)
    if ctx.needs_input_grad[1]:
        dmaster = _product(as_matrix(grad).T, as_matrix(x), master.dtype)
    if ctx.has_bias and ctx.needs_input_grad[7]:
        dbias = as_matrix(grad).sum(0, dtype=master.dtype)
    return dx, dmaster, None, None, None, None, None, dbias


csr_linear_dense_grad_raw = define(
    "csr_linear_dense_grad(Tensor x, Tensor master, Tensor crow, Tensor col, Tensor ccol, Tensor row, Tensor perm, "
    "Tensor? bias) -> Tensor",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    composite=_forward,
)


def csr_linear_dense_grad(x: Tensor, master: Tensor, pattern: "Pattern", bias: Tensor | None = None) -> Tensor:
    """``csr_linear`` with the values of ``master`` at ``pattern``, and a gradient for all of ``master``.

    The forward pass and the gradient of ``x`` cost what the pattern costs; the gradient of ``master`` is the full
    ``dY.T @ X``, also off the pattern, which is what the published rule selects from (Gao et al. 2025, section 2.1).

    Args:
        x: (..., K), float32, bfloat16 or float64; on a GPU also float16.
        master: dense (N, K), float32 (float64 where x is); entries off the pattern do not enter the output.
        pattern: the positions that do.
        bias: (N) or None.

    Returns:
        (..., N), with gradients to ``x``, ``master`` and ``bias``.

    Raises:
        ValueError: ``master`` does not have the shape of ``pattern``.
        RuntimeError: another shape or dtype does not fit; the message names the argument.
    """
    return csr_linear_dense_grad_raw(autocast(x), master, *pattern.tensors, bias)
