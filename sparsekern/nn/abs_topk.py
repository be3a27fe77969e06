"""``AbsTopK``: activation sparsity as a layer."""

from torch import Tensor, nn

from ..ops.abs_topk import abs_topk


class AbsTopK(nn.Module):
    """Keep the ``k`` largest magnitudes of the last dimension (Gao et al. 2025, appendix A.1)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return abs_topk(x, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
