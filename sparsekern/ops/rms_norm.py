"""``rms_norm``: rows divided by their root mean square."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._define import define, second_gradients
from .dtypes import autocast_dtype, value_dtype


def _fake(x: Tensor, gain: Tensor, eps: float, narrow: bool) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=torch.bfloat16 if narrow else x.dtype)
    return y, x.new_empty(math.prod(x.shape[:-1]), dtype=value_dtype(x.dtype))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.eps = inputs[2]


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *_backward_raw(grad, *ctx.saved_tensors, ctx.eps), None, None


def _backward_fake(grad: Tensor, x: Tensor, gain: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), gain.new_empty(gain.shape)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.eps = inputs[4]


def _backward_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    second = second_gradients(lambda x, gain: by_torch(x, gain, ctx.eps), ctx.saved_tensors, cotangents)
    return *second, None, None


_forward_raw = define(
    "rms_norm(Tensor x, Tensor gain, float eps, bool narrow) -> (Tensor y, Tensor rstd)",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)
_backward_raw = define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor gain, Tensor rstd, float eps) -> (Tensor dx, Tensor dgain)",
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_backward,
)


def by_torch(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, gain.shape, gain, eps)


def rms_norm(x: Tensor, gain: Tensor, eps: float | None = None) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * gain`` along the last dimension, in one pass forward and one backward (on the CPU,
    where torch takes several; on a GPU it is torch's own).

    Args:
        x: (..., D), float32, bfloat16 or float64; on a GPU also float16.
        gain: (D); float32 beside bfloat16 on the CPU.
        eps: by default the epsilon of the dtype computed in (float32 for bfloat16), as in ``nn.RMSNorm``.

    Returns:
        A tensor like ``x``, with gradients to ``x`` and ``gain``. On the CPU in the dtype that autocast asks for.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    eps = torch.finfo(value_dtype(x.dtype)).eps if eps is None else eps
    if x.device.type != "cpu":
        return by_torch(x, gain, eps)
    return _forward_raw(x, gain, eps, autocast_dtype(x) != x.dtype)[0]
