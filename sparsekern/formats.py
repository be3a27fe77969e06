"""Sparse formats: plain tensors with names, never a ``torch.sparse`` layout, which autograd and compile trip over."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .ops.csr_pattern import csr_scatter, csr_transpose, csr_validate
from .ops.topk_project import topk_select


def count_nonzeros(shape: tuple[int, int], nnz: int | None, density: float | None) -> int:
    """The number of nonzeros that exactly one of ``nnz`` and ``density`` (rounded down) asks for."""
    total = shape[0] * shape[1]
    if (nnz is None) == (density is None):
        raise ValueError(f"expected exactly one of nnz and density, got nnz={nnz}, density={density}")
    if density is not None:
        if not 0 <= density <= 1:
            raise ValueError(f"density must be between 0 and 1, got {density}")
        return int(density * total)
    assert nnz is not None
    if not 0 <= nnz <= total:
        raise ValueError(f"nnz must be between 0 and {total} for shape {shape}, got {nnz}")
    return nnz


def flat_indices(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """(nnz) int64, ascending: ``row * cols + col`` of every position of a CSR pattern."""
    first = torch.arange(len(crow) - 1, device=crow.device).mul_(cols)
    return torch.repeat_interleave(first, crow.diff().long(), output_size=len(col)).add_(col)


def compressed(flat: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``(crow, col)`` of ascending flat indices, int32 where that is enough."""
    n, k = shape
    dtype = torch.int32 if max(n, k, len(flat)) < 2**31 else torch.int64
    starts = torch.arange(n + 1, device=flat.device).mul_(k)
    return torch.searchsorted(flat, starts).to(dtype), (flat % max(k, 1)).to(dtype)


def is_among(flat: Tensor, ascending: Tensor) -> Tensor:
    """Bool, for each of ``flat``."""
    if len(ascending) == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    return ascending[torch.searchsorted(ascending, flat).clamp_(max=len(ascending) - 1)] == flat


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where the nonzeros of an (N, K) matrix are: its rows (CSR), and its columns for the transpose.

    All index tensors are int32, or int64 where a count would overflow. Position ``q`` of the transpose holds the
    value at position ``perm[q]``.
    """

    crow_indices: Tensor  # (N + 1)
    col_indices: Tensor  # (nnz), ascending within each row
    ccol_indices: Tensor  # (K + 1)
    row_indices: Tensor  # (nnz), ascending within each column
    perm: Tensor  # (nnz)
    shape: tuple[int, int]

    @classmethod
    def build(cls, crow_indices: Tensor, col_indices: Tensor, shape: tuple[int, int]) -> "Pattern":
        """A pattern from valid CSR indices; the transpose is computed."""
        ccol, row, perm = csr_transpose(crow_indices, col_indices, shape[1])
        return cls(crow_indices, col_indices, ccol, row, perm, shape)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five index tensors, in the order in which raw ops take them."""
        return self.crow_indices, self.col_indices, self.ccol_indices, self.row_indices, self.perm

    @property
    def nnz(self) -> int:
        return self.col_indices.shape[0]

    def flat_indices(self) -> Tensor:
        """(nnz) int64, ascending: ``row * K + col`` of every position."""
        return flat_indices(self.crow_indices, self.col_indices, self.shape[1])

    def transpose(self) -> "Pattern":
        """The (K, N) pattern; no index is recomputed but the permutation, which is inverted."""
        inverse = torch.empty_like(self.perm)
        inverse[self.perm.long()] = torch.arange(self.nnz, dtype=self.perm.dtype, device=self.perm.device)
        return Pattern(
            self.ccol_indices, self.row_indices, self.crow_indices, self.col_indices, inverse, self.shape[::-1]
        )

    def to(self, device: torch.device | str) -> "Pattern":
        crow, col, ccol, row, perm = (t.to(device) for t in self.tensors)
        return Pattern(crow, col, ccol, row, perm, self.shape)


@dataclass(frozen=True, eq=False)
class ActivePattern:
    """Positions of an (N, K) matrix that are trained, in the order of CSR: its support, and candidates beside it."""

    crow_indices: Tensor  # (N + 1)
    col_indices: Tensor  # (active), ascending within each row
    slots: Tensor  # (nnz), ascending: which of the active positions the support is
    support: Pattern

    @property
    def shape(self) -> tuple[int, int]:
        return self.support.shape

    def flat_indices(self) -> Tensor:
        """(active) int64, ascending: ``row * K + col`` of every active position."""
        return flat_indices(self.crow_indices, self.col_indices, self.shape[1])


@dataclass(frozen=True, eq=False)
class CSR:
    """A sparse (N, K) matrix in compressed rows: one value per position of a :class:`Pattern`.

    ``values`` may require a gradient; ops give it an ordinary dense (nnz) one. Explicit zeros may be stored and count.
    """

    values: Tensor  # (nnz)
    pattern: Pattern

    # ---- construction

    @classmethod
    def from_parts(cls, crow_indices: Tensor, col_indices: Tensor, values: Tensor, shape: tuple[int, int]) -> "CSR":
        """From the pieces of a CSR matrix, in the order of ``torch.sparse_csr_tensor``; they are validated.

        Raises:
            ValueError: indices out of range, unsorted or duplicate, or lengths that do not match.
        """
        shape = (int(shape[0]), int(shape[1]))
        if crow_indices.shape != (shape[0] + 1,):
            raise ValueError(f"crow_indices must have N + 1 = {shape[0] + 1} entries, got {tuple(crow_indices.shape)}")
        if values.shape != col_indices.shape or values.dim() != 1:
            raise ValueError(
                f"values and col_indices must be vectors of equal length, got {tuple(values.shape)} and "
                f"{tuple(col_indices.shape)}"
            )
        crow, col = crow_indices.detach().contiguous(), col_indices.detach().contiguous()
        try:  # before the indices are narrowed, which could bring a wrong one into range
            csr_validate(crow.cpu(), col.cpu(), shape[1])
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        dtype = torch.int32 if max(*shape, values.numel()) < 2**31 else torch.int64
        return cls(values.contiguous(), Pattern.build(crow.to(dtype), col.to(dtype), shape))

    @classmethod
    def from_dense(cls, weight: Tensor, nnz: int | None = None, density: float | None = None) -> "CSR":
        """The ``nnz`` entries of largest magnitude of an (N, K) matrix, exactly; ties go to the lowest flat index.

        Args:
            weight: (N, K), float32 or float64; not changed.
            nnz: how many entries; or
            density: the fraction of all entries, rounded down to a count.
        """
        if weight.dim() != 2:
            raise ValueError(f"weight must be a matrix, got shape {tuple(weight.shape)}")
        shape = (weight.shape[0], weight.shape[1])
        crow, col = topk_select(weight, count_nonzeros(shape, nnz, density))
        pattern = Pattern.build(crow, col, shape)
        rows = torch.repeat_interleave(torch.arange(shape[0], device=crow.device), crow.diff().long())
        return cls(weight.detach()[rows, col.long()], pattern)

    @classmethod
    def random(
        cls,
        n: int,
        k: int,
        *,
        nnz: int | None = None,
        density: float | None = None,
        floor: int = 0,
        axis: int | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "CSR":
        """An (n, k) matrix with uniformly random positions and standard normal values, on the generator's device.

        Every row (axis 0) or column (axis 1) has at least ``floor``.
        """
        count = count_nonzeros((n, k), nnz, density)
        device = torch.get_default_device() if generator is None else generator.device
        flat = torch.empty(0, dtype=torch.int64, device=device)
        if floor and axis is not None:
            flat = _random_floor((n, k), count, floor, axis, generator, device)
        crow, col = compressed(_random_positions(n * k, count, flat, generator), (n, k))
        values = torch.randn(count, generator=generator, dtype=dtype, device=device)
        return cls.from_parts(crow, col, values, (n, k))

    @classmethod
    def from_torch(cls, tensor: Tensor) -> "CSR":
        """From a 2-D ``torch.sparse`` tensor (COO, CSR or CSC) or, keeping its nonzero entries, a dense one."""
        if tensor.dim() != 2:
            raise ValueError(f"tensor must be a matrix, got shape {tuple(tensor.shape)}")
        csr = tensor.to_sparse_csr()
        # detached: torch.compile cannot follow views whose base is a sparse tensor
        parts = (csr.crow_indices(), csr.col_indices(), csr.values())
        crow, col, values = (part.detach() for part in parts)
        return cls.from_parts(crow, col, values, (tensor.shape[0], tensor.shape[1]))

    # ---- reading

    @property
    def crow_indices(self) -> Tensor:
        return self.pattern.crow_indices

    @property
    def col_indices(self) -> Tensor:
        return self.pattern.col_indices

    @property
    def shape(self) -> tuple[int, int]:
        return self.pattern.shape

    @property
    def nnz(self) -> int:
        return self.pattern.nnz

    @property
    def density(self) -> float:
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __repr__(self) -> str:
        return (
            f"CSR(shape={self.shape}, nnz={self.nnz:,}, density={self.density:.3%}, dtype={self.dtype}, "
            f"device={self.device})"
        )

    # ---- conversion

    def to_dense(self) -> Tensor:
        """(N, K), zero off the pattern; differentiable in ``values``."""
        return csr_scatter(self.values, self.crow_indices, self.col_indices, self.shape[1])

    def to_torch(self) -> Tensor:
        """A detached ``torch.sparse_csr`` tensor that shares ``values``."""
        return torch.sparse_csr_tensor(self.crow_indices, self.col_indices, self.values.detach(), self.shape)

    def transpose(self) -> "CSR":
        """The (K, N) transpose, differentiable in ``values``."""
        return CSR(self.values[self.pattern.perm.long()], self.pattern.transpose())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "CSR":
        """On another device, or with values of another dtype; indices keep theirs."""
        device = self.device if device is None else device
        return CSR(self.values.to(device=device, dtype=dtype or self.dtype), self.pattern.to(device))

    def validate(self) -> None:
        """Check every invariant of the format.

        Raises:
            ValueError: naming the first one that is broken.
        """
        checked = CSR.from_parts(self.crow_indices, self.col_indices, self.values, self.shape)
        for name in ("ccol_indices", "row_indices", "perm"):
            if not torch.equal(getattr(checked.pattern, name), getattr(self.pattern, name)):
                raise ValueError(f"CSR: {name} does not describe the transpose of the pattern")


def _random_positions(total: int, count: int, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
    """``count`` distinct ascending integers below ``total``: all of ``chosen``, the rest uniformly."""
    device = chosen.device
    if 4 * count > total:
        order = torch.randperm(total, generator=generator, device=device)
        rest = order[~is_among(order, chosen.sort().values)]
        return torch.cat([chosen, rest[: count - len(chosen)]]).sort().values
    flat = chosen.sort().values
    while len(flat) < count:
        missing = count - len(flat)
        drawn = torch.randint(total, (2 * missing,), generator=generator, device=device).unique()
        drawn = drawn[~is_among(drawn, flat)]
        drawn = drawn[torch.randperm(len(drawn), generator=generator, device=device)[:missing]]
        flat = torch.cat([flat, drawn]).sort().values
    return flat


def _random_floor(
    shape: tuple[int, int],
    count: int,
    floor: int,
    axis: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Flat indices of ``floor`` random positions in each row (axis 0) or column (axis 1)."""
    neurons, inputs = shape if axis == 0 else shape[::-1]
    if floor > inputs or floor * neurons > count:
        raise ValueError(f"floor must let {neurons} neurons of {inputs} inputs share {count} nonzeros, got {floor}")
    drawn = torch.randint(inputs, (neurons, floor), generator=generator, device=device)
    if 4 * floor > inputs:
        drawn = torch.rand(neurons, inputs, generator=generator, device=device).argsort(dim=1)[:, :floor]
    while True:
        repeated = (drawn.sort(dim=1).values.diff(dim=1) == 0).any(dim=1).nonzero().flatten()
        if len(repeated) == 0:
            break
        drawn[repeated] = torch.randint(inputs, (len(repeated), floor), generator=generator, device=device)
    neuron = torch.arange(neurons, device=device).unsqueeze(1)
    return (neuron * inputs + drawn if axis == 0 else drawn * neurons + neuron).flatten()
