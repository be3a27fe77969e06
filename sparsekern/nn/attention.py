"""``CausalAttention``: attention as a layer without parameters."""

from torch import Tensor, nn

from ..ops.causal_attention import causal_attention


class CausalAttention(nn.Module):
    """Softmax attention of every token to itself and those before it, for many narrow heads."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, T, H, D) each -> (B, T, H, D)."""
        return causal_attention(q, k, v)
