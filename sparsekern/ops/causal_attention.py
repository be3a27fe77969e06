"""``causal_attention``: softmax attention for many narrow heads."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from ._define import define, second_gradients
from .dtypes import autocast, value_dtype


def _fake(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, tokens, dtype=value_dtype(q.dtype))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: checkpointing computes it when it is read
    dq, dk, dv, dsink = _backward_raw(grad, *saved)
    return dq, dk, dv, None if saved[3] is None else dsink.sum(0)


def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, y: Tensor, lse: Tensor
) -> tuple[Tensor, ...]:
    dsink = q.new_empty(0 if sink is None else q.shape[0], q.shape[2], dtype=value_dtype(q.dtype))
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), dsink


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])


def _backward_backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, dsink: Tensor) -> tuple[Tensor | None, ...]:
    cotangents = (dq, dk, dv, dsink[0] if len(dsink) else dsink)  # those of a sum's terms are all the same
    second = second_gradients(reference.causal_attention, ctx.saved_tensors, cotangents)
    return *second, *([None] * (7 - len(second)))


causal_attention_raw = define(
    "causal_attention(Tensor q, Tensor k, Tensor v, Tensor? sink) -> (Tensor y, Tensor lse)",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)
_backward_raw = define(
    "causal_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? sink, Tensor y, Tensor lse)"
    " -> (Tensor dq, Tensor dk, Tensor dv, Tensor dsink)",
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_backward,
)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None = None) -> Tensor:
    """Softmax attention of every token to itself and those before it, scores scaled by ``1 / sqrt(D)``.

    On the CPU it is made for many narrow heads (8 to 32), where torch's own kernels spend most of their time outside of
    the products; on a GPU it is torch's own.

    Args:
        q, k, v: (B, T, H, D): tokens before heads, as a linear layer leaves them; float32, bfloat16 or float64, on a
            GPU also float16. Autocast casts them.
        sink: (H), a score per head that takes part in the softmax with a value of zero (Gao et al. 2025, appendix A.1).

    Returns:
        (B, T, H, D), with gradients to all arguments.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names the argument.
    """
    if q.device.type != "cpu":
        return by_torch(q, k, v, sink)
    return causal_attention_raw(autocast(q), autocast(k), autocast(v), sink)[0]


def by_torch(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, dropout: float = 0.0) -> Tensor:
    """The same by ``scaled_dot_product_attention``; a sink is the score of one more key, of zeros."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if sink is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(1, 2)
    tokens = q.shape[2]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    scores = torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, -torch.inf).expand(len(sink), -1, -1)
    with_sink = torch.cat([sink.to(q.dtype).view(-1, 1, 1).expand(-1, tokens, 1), scores], dim=2)
    k, v = (F.pad(t, (0, 0, 1, 0)) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=with_sink, dropout_p=dropout).transpose(1, 2)
