"""``SparseLinear``, ``BlockSparseLinear``, ``SparseEmbedding``: drop-in layers over a :class:`SparseWeight`."""

import math

import torch
from torch import Tensor, nn

from ..formats import BSR, CSR, Block, count_nonzeros
from ..ops.choice import KernelChoice
from .weight import BlockSparseWeight, SparseWeight


def _copied(bias: nn.Parameter | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)


class SparseLinear(nn.Module):
    """A drop-in for ``nn.Linear`` with a sparse weight: ``y = x @ W.T + b`` at the cost of the nonzeros.

    Args:
        in_features, out_features: K and N.
        bias: whether to add a (dense) bias.
        density, nnz: exactly one of them: the fraction, or the number, of entries that are stored.

    Attributes:
        weight: the :class:`SparseWeight`, at random positions to begin with.
        bias: Parameter (N) or None.

    Raises:
        ValueError: not exactly one of ``density`` and ``nnz``, or out of range.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float | None = None,
        nnz: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        count = count_nonzeros((out_features, in_features), nnz, density)
        csr = CSR.random(out_features, in_features, nnz=count, dtype=dtype or torch.get_default_dtype())
        weight = SparseWeight(csr.to(device or torch.get_default_device()))
        self._hold(weight, nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def _hold(self, weight: SparseWeight, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw values and bias as ``nn.Linear`` does, for the mean number of inputs that a row really has."""
        fan_in = max(1.0, self.weight.density * self.in_features)
        bound = 1 / math.sqrt(fan_in)
        self.weight.parameter.uniform_(-bound, bound)
        if isinstance(self.weight, BlockSparseWeight):
            self.weight.clear_over_edge_()
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, density: float | None = None, nnz: int | None = None) -> "SparseLinear":
        """The largest magnitudes of a dense layer, exactly ``nnz`` of them; the dense layer is left alone."""
        weight = SparseWeight.from_parameter(linear.weight, nnz=nnz, density=density)
        return cls.from_weight(weight, _copied(linear.bias))

    @classmethod
    def from_weight(cls, weight: SparseWeight, bias: nn.Parameter | None = None) -> "SparseLinear":
        """A layer around an existing weight, which may be shared with others."""
        layer = cls.__new__(cls)
        layer._hold(weight, bias)
        return layer

    def to_linear(self) -> nn.Linear:
        """A dense ``nn.Linear`` with the same outputs."""
        dense = self.weight.to_dense().detach()
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=dense.device, dtype=dense.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(dense)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    def explain(self) -> KernelChoice:
        """Which kernel computes this layer, and why; prints as a sentence."""
        return self.weight.choice()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.weight.linear(x, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class BlockSparseLinear(SparseLinear):
    """A drop-in for ``nn.Linear`` whose weight consists of dense blocks.

    Args:
        in_features, out_features: K and N; they need not be multiples of the block.
        block: both sides of a block (rows along N), or one: each of 16, 32, 64, 128.
        bias: whether to add a (dense) bias.
        density, blocks: exactly one of them: the fraction, or the number, of blocks that are stored.

    Attributes:
        weight: the :class:`BlockSparseWeight`, at random positions to begin with.
        bias: Parameter (N) or None.

    Raises:
        ValueError: a side that there are no kernels for; not exactly one of ``density`` and ``blocks``, or one out of
            range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block: Block,
        bias: bool = True,
        *,
        density: float | None = None,
        blocks: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kind = dtype or torch.get_default_dtype()
        bsr = BSR.random(out_features, in_features, block, density=density, blocks=blocks, dtype=kind)
        weight = BlockSparseWeight(bsr.to(device or torch.get_default_device()))
        self._hold(weight, nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    @classmethod
    def from_linear(  # type: ignore[override]
        cls, linear: nn.Linear, block: Block, *, density: float | None = None, blocks: int | None = None
    ) -> "SparseLinear":
        """The blocks of largest norm of a dense layer, exactly ``blocks`` of them; the dense layer is left alone."""
        weight = BlockSparseWeight.from_parameter(linear.weight, block, blocks=blocks, density=density)
        return cls.from_weight(weight, _copied(linear.bias))


class SparseEmbedding(nn.Module):
    """A drop-in for ``nn.Embedding`` with a sparse table (V, D).

    Args:
        num_embeddings, embedding_dim: V and D.
        density, nnz: exactly one of them: the fraction, or the number, of entries that are stored.

    Raises:
        ValueError: not exactly one of ``density`` and ``nnz``, or out of range.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        density: float | None = None,
        nnz: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        count = count_nonzeros((num_embeddings, embedding_dim), nnz, density)
        csr = CSR.random(num_embeddings, embedding_dim, nnz=count, dtype=dtype or torch.get_default_dtype())
        self.weight = SparseWeight(csr.to(device or torch.get_default_device()))

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, *, density: float | None = None, nnz: int | None = None
    ) -> "SparseEmbedding":
        """The largest magnitudes of a dense table, exactly ``nnz`` of them."""
        return cls.from_weight(SparseWeight.from_parameter(embedding.weight, nnz=nnz, density=density))

    @classmethod
    def from_weight(cls, weight: SparseWeight) -> "SparseEmbedding":
        """A layer around an existing weight, which may be shared with others."""
        layer = cls(*weight.shape, nnz=0)
        layer.weight = weight
        return layer

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., embedding_dim)."""
        return self.weight.embedding(ids)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
