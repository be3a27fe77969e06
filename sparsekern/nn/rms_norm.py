"""``RMSNorm``: torch's, in one pass on the CPU."""

from torch import Tensor, nn

from ..ops.rms_norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` over the last dimension, with a gain.

    Args:
        width: of that dimension.
        eps: the dtype's epsilon by default.
    """

    weight: nn.Parameter

    def __init__(self, width: int, eps: float | None = None) -> None:
        super().__init__(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return rms_norm(x, self.weight, self.eps)
