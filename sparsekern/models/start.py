"""How the weights of a model begin: dense in master form, or sparse from the start and never allocated densely."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..formats import BSR, CSR
from ..nn import BlockSparseLinear, BlockSparseWeight, SparseLinear, SparseWeight


@dataclass(frozen=True)
class Start:
    """How matrices begin: dense in master form, or with random nonzeros in values form, never allocated densely.

    Attributes:
        density: of the nonzeros, or None for a dense start; 0 leaves the matrices empty, to be loaded.
        floor: nonzeros that every neuron has at least.
    """

    density: float | None = None
    floor: int = 0

    def weight(self, n: int, k: int, std: float, axis: int | None = None, block: int | None = None) -> SparseWeight:
        """(n, k); ``std`` is that of the entries of a dense one, and a sparse one gives outputs of the same variance.

        ``axis`` tells which dimension is the neuron that the floor protects; ``block`` the side of dense blocks.
        """
        floor = floor_of(self.floor, block) if axis is not None else 0
        if self.density is None:
            master = torch.randn(n, k) * std
            if block is None:
                return SparseWeight.from_master(master, floor=floor, axis=axis)
            return BlockSparseWeight.from_master(master, block, floor=floor, axis=axis)
        rule: dict[str, Any] = {"density": self.density}
        rule |= {"floor": floor, "axis": axis} if self.density else {}
        scale = std / math.sqrt(self.density) if self.density else 0.0
        if block is not None:
            bsr = BSR.random(n, k, block, **rule)
            return BlockSparseWeight(bsr.with_values(bsr.values * scale), floor=floor, axis=axis)
        csr = CSR.random(n, k, **rule)
        return SparseWeight(CSR(csr.values * scale, csr.pattern), floor=floor, axis=axis)

    def linear(
        self, n: int, k: int, bias: bool, std: float, axis: int | None = None, block: int | None = None
    ) -> SparseLinear:
        kind = SparseLinear if block is None else BlockSparseLinear
        return kind.from_weight(self.weight(n, k, std, axis, block), nn.Parameter(torch.zeros(n)) if bias else None)


def floor_of(nonzeros: int, block: int | None) -> int:
    """Positions that have at least so many nonzeros of a neuron."""
    return nonzeros if block is None else -(-nonzeros // block)
