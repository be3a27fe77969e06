"""``abs_topk``: keep the largest magnitudes of each row."""

from typing import Any

import torch
from torch import Tensor

from ._define import define


def _fake(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(*x.shape[:-1], (x.shape[-1] + 7) // 8, dtype=torch.uint8)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
    return abs_topk_backward_raw(grad, *ctx.saved_tensors), None


def _backward_fake(grad: Tensor, kept: Tensor) -> Tensor:
    return grad.new_empty(grad.shape)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return abs_topk_backward_raw(grad, *ctx.saved_tensors), None


abs_topk_raw = define(
    "abs_topk(Tensor x, SymInt k) -> (Tensor y, Tensor kept)",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)
abs_topk_backward_raw = define(
    "abs_topk_backward(Tensor grad, Tensor kept) -> Tensor",
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_backward,
)


def abs_topk(x: Tensor, k: int) -> Tensor:
    """Keep the ``k`` largest magnitudes along the last dimension, with their signs; the rest is exactly 0.

    Equal magnitudes go to the lowest index; NaN counts as larger than infinity, so it stays visible. The gradient
    passes through the kept entries, also through those that are zero (Gao et al. 2025, appendix A.1).

    Args:
        x: (..., D), float32, bfloat16 or float64; on a GPU also float16.
        k: entries kept per row, 0 <= k <= D.

    Returns:
        A tensor like ``x``, with a gradient to ``x``.

    Raises:
        RuntimeError: ``k`` or the dtype does not fit.
    """
    return abs_topk_raw(x, k)[0]
