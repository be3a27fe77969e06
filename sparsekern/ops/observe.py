"""``observe``: what flows through a layer, measured in the backward pass and delivered as ordinary gradients."""

from typing import Any

import torch
from torch import Tensor

from ._define import define
from .csr_embedding import csr_embedding_backward_raw
from .dtypes import value_dtype
from .reference import as_matrix

_CACHED = 2**17  # elements whose squares need not leave the caches


def _forward(y: Tensor, x: Tensor, dy_squares: Tensor, x_squares: Tensor) -> Tensor:
    return y.clone()


def _fake(y: Tensor, x: Tensor, dy_squares: Tensor, x_squares: Tensor) -> Tensor:
    return torch.empty_like(y)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, _, x_squares = inputs
    ctx.save_for_backward(x)
    ctx.features = x_squares.shape[0]


def _square_sums(x: Tensor) -> Tensor:
    """(D): the sum of squares of each feature over the tokens."""
    rows, dtype = as_matrix(x), value_dtype(x.dtype)
    if x.is_cuda or x.numel() == 0:
        return torch.linalg.vector_norm(rows, dim=0, dtype=dtype).square()
    blocks = rows.split(max(1, _CACHED // rows.shape[1]))  # six times as fast on the CPU
    return torch.stack([block.to(dtype).square().sum(0) for block in blocks]).sum(0)


def _square_sums_of_ids(ids: Tensor, dy: Tensor, rows: int) -> Tensor:
    """(rows): the sum over the tokens with an id of their squared norms, in the order of the tokens."""
    squares = torch.linalg.vector_norm(dy, dim=-1, keepdim=True, dtype=value_dtype(dy.dtype)).square()
    crow = torch.arange(rows + 1, dtype=torch.int32, device=ids.device)  # of a table with one column
    return csr_embedding_backward_raw(squares, ids, crow, torch.zeros_like(crow[1:]))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    of_x = _square_sums(x) if x.is_floating_point() else _square_sums_of_ids(x, grad, ctx.features)
    return grad, None, _square_sums(grad), of_x.to(value_dtype(grad.dtype))


_raw = define(
    "observe(Tensor y, Tensor x, Tensor dy_squares, Tensor x_squares) -> Tensor",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    composite=_forward,
)


def observe(y: Tensor, x: Tensor, dy_squares: Tensor, x_squares: Tensor) -> Tensor:
    """A copy of ``y``, a linear function of ``x``; on the way back the activity of both is measured.

    The *gradients* of ``dy_squares`` and ``x_squares`` are defined as the sums of squares, over the tokens, of the
    gradient of ``y`` and of ``x``. As gradients they add up over micro-batches and survive checkpointing and compiling.

    Args:
        y: (..., N).
        x: (..., K), or (...) int64: indices, each of which is as active as the gradient of its ``y`` is large.
        dy_squares: (N) leaf tensor; its content does not matter.
        x_squares: (K) leaf tensor; its content does not matter.
    """
    return _raw(y, x, dy_squares, x_squares)
