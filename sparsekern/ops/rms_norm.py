"""``rms_norm``: rows divided by their root mean square."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._define import define, second_gradients


def _fake(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1].numel())


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.eps = inputs[2]


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *_backward_raw(grad, *ctx.saved_tensors, ctx.eps), None


def _backward_fake(grad: Tensor, x: Tensor, gain: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(gain.shape)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.eps = inputs[4]


def _backward_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    second = second_gradients(lambda x, gain: by_torch(x, gain, ctx.eps), ctx.saved_tensors, cotangents)
    return *second, None, None


_forward_raw = define(
    "rms_norm(Tensor x, Tensor gain, float eps) -> (Tensor y, Tensor rstd)",
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
        x: (..., D), float32 or float64; on a GPU also bfloat16 or float16.
        gain: (D).
        eps: the dtype's epsilon by default, as in ``nn.RMSNorm``.

    Returns:
        A tensor like ``x``, with gradients to ``x`` and ``gain``.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _forward_raw(x, gain, eps)[0] if x.device.type == "cpu" else by_torch(x, gain, eps)
