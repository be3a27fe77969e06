"""``CausalAttention``: attention as a layer, with a sink if wanted."""

import torch
from torch import Tensor, nn

from ..ops.causal_attention import by_torch, causal_attention


class CausalAttention(nn.Module):
    """Softmax attention of every token to itself and those before it, for many narrow heads.

    Args:
        sinks: number of heads that have a sink; None for none.
        dropout: of the attention's weights, in training; torch's own kernel computes it then.

    Attributes:
        sink: Parameter (H), a score per head that takes part in the softmax with a value of zero; or None.
    """

    def __init__(self, sinks: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.sink = None if sinks is None else nn.Parameter(torch.zeros(sinks))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, T, H, D) each -> (B, T, H, D)."""
        if self.training and self.dropout:
            return by_torch(q, k, v, self.sink, self.dropout)
        return causal_attention(q, k, v, self.sink)

    def extra_repr(self) -> str:
        return f"sinks={0 if self.sink is None else len(self.sink)}, dropout={self.dropout}"
