"""Sparse formats: plain tensors with names, never a ``torch.sparse`` layout, which autograd and compile trip over."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .ops.bsr_linear import BLOCK_SIDES
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


def _require_transpose(given: Pattern, right: Pattern) -> None:
    for name in ("ccol_indices", "row_indices", "perm"):
        if not torch.equal(getattr(given, name), getattr(right, name)):
            raise ValueError(f"{name} does not describe the transpose of the pattern")


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


class _Stored:
    """What matrices with values at the positions of a pattern have in common."""

    values: Tensor
    pattern: Pattern

    @property
    def crow_indices(self) -> Tensor:
        return self.pattern.crow_indices

    @property
    def col_indices(self) -> Tensor:
        return self.pattern.col_indices

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device


@dataclass(frozen=True, eq=False)
class CSR(_Stored):
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
    def shape(self) -> tuple[int, int]:
        return self.pattern.shape

    @property
    def nnz(self) -> int:
        return self.pattern.nnz

    @property
    def density(self) -> float:
        return self.nnz / max(1, self.shape[0] * self.shape[1])

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
        _require_transpose(self.pattern, checked.pattern)


Block = int | tuple[int, int]


def block_sides(block: Block) -> tuple[int, int]:
    """(rows, columns) of a block given by one or two sides.

    Raises:
        ValueError: a side that there are no kernels for.
    """
    sides = (block, block) if isinstance(block, int) else tuple(block)
    if len(sides) != 2 or not all(side in BLOCK_SIDES for side in sides):
        raise ValueError(f"block must have sides among {', '.join(map(str, BLOCK_SIDES))}, got {block}")
    return sides


def grid_shape(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks an (N, K) matrix is high and wide; the last ones may reach over its edge."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def blocks_of(dense: Tensor, block: tuple[int, int]) -> Tensor:
    """(rows, columns of the grid, *block): a view of an (N, K) matrix, or of a copy with zeros over its edge."""
    (n, k), (rows, cols) = dense.shape, grid_shape((dense.shape[0], dense.shape[1]), block)
    if (n, k) != (rows * block[0], cols * block[1]):
        dense = torch.nn.functional.pad(dense, (0, cols * block[1] - k, 0, rows * block[0] - n))
    return dense.view(rows, block[0], cols, block[1]).transpose(1, 2)


def gather_blocks(dense: Tensor, block: tuple[int, int], flat: Tensor) -> Tensor:
    """(len(flat), *block): the blocks of an (N, K) matrix at flat positions of its grid."""
    cut = blocks_of(dense, block)
    cols = max(1, cut.shape[1])
    return cut[flat.div(cols, rounding_mode="floor"), flat % cols]


def clear_over_edge_(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    """Set to 0, in place, what blocks (positions, *block) hold over the edge of an (N, K) matrix."""
    height, width = values.shape[1:]
    rows, cols = grid_shape(shape, (height, width))
    if rows * height > shape[0]:
        values[int(crow[-2]) :, shape[0] - rows * height :] = 0
    if cols * width > shape[1]:
        values[col == cols - 1, :, shape[1] - cols * width :] = 0
    return values


def block_norms(dense: Tensor, block: tuple[int, int]) -> Tensor:
    """(rows, columns of the grid): the norm of every block of an (N, K) matrix."""
    return torch.linalg.vector_norm(blocks_of(dense, block), dim=(2, 3))


@dataclass(frozen=True, eq=False)
class BSR(_Stored):
    """A sparse (N, K) matrix of dense blocks: one block per position of a :class:`Pattern` over the grid of blocks.

    Where the sides of the blocks do not divide those of the matrix, the last blocks reach over its edge. Nothing there
    enters a result, and its gradient is 0. Explicit zeros are stored.
    """

    values: Tensor  # (blocks, *block)
    pattern: Pattern  # of grid_shape(shape, block)
    shape: tuple[int, int]

    # ---- construction

    @classmethod
    def from_parts(cls, crow_indices: Tensor, col_indices: Tensor, values: Tensor, shape: tuple[int, int]) -> "BSR":
        """From the pieces of a BSR matrix, in the order of ``torch.sparse_bsr_tensor``; they are validated.

        Raises:
            ValueError: indices out of range, unsorted or duplicate, lengths that do not match, or sides of blocks that
                there are no kernels for.
        """
        if values.dim() != 3:
            raise ValueError(f"values must have shape (blocks, *block), got {tuple(values.shape)}")
        grid = grid_shape(shape, block_sides((values.shape[1], values.shape[2])))
        where = CSR.from_parts(crow_indices, col_indices, values[:, 0, 0].detach(), grid)
        return cls(values.contiguous(), where.pattern, (int(shape[0]), int(shape[1])))

    @classmethod
    def from_dense(
        cls, weight: Tensor, block: Block, *, blocks: int | None = None, density: float | None = None
    ) -> "BSR":
        """The blocks of largest norm of an (N, K) matrix, exactly; ties go to the lowest position in the grid.

        Args:
            weight: (N, K), float32 or float64; not changed.
            block: both sides, or one: each of 16, 32, 64, 128.
            blocks: how many of them; or
            density: the fraction of all blocks, rounded down to a count.
        """
        if weight.dim() != 2:
            raise ValueError(f"weight must be a matrix, got shape {tuple(weight.shape)}")
        sides, weight = block_sides(block), weight.detach()
        norms = block_norms(weight, sides)
        crow, col = topk_select(norms, count_nonzeros((norms.shape[0], norms.shape[1]), blocks, density))
        pattern = Pattern.build(crow, col, (norms.shape[0], norms.shape[1]))
        shape = (weight.shape[0], weight.shape[1])
        return cls(gather_blocks(weight, sides, pattern.flat_indices()), pattern, shape)

    @classmethod
    def random(
        cls,
        n: int,
        k: int,
        block: Block,
        *,
        blocks: int | None = None,
        density: float | None = None,
        floor: int = 0,
        axis: int | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "BSR":
        """An (n, k) matrix with uniformly random blocks of standard normal values, on the generator's device.

        Every row (axis 0) or column (axis 1) of the grid has at least ``floor`` blocks.
        """
        sides = block_sides(block)
        rows, cols = grid_shape((n, k), sides)
        where = CSR.random(rows, cols, nnz=blocks, density=density, floor=floor, axis=axis, generator=generator)
        values = torch.randn(where.nnz, *sides, generator=generator, dtype=dtype, device=where.device)
        clear_over_edge_(values, where.crow_indices, where.col_indices, (n, k))
        return cls(values, where.pattern, (n, k))

    @classmethod
    def from_torch(cls, tensor: Tensor) -> "BSR":
        """From a 2-D ``torch.sparse_bsr`` tensor.

        Raises:
            ValueError: another layout (``tensor.to_sparse_bsr(block)`` makes one), or sides of blocks that there are no
                kernels for.
        """
        if tensor.layout != torch.sparse_bsr or tensor.dim() != 2:
            raise ValueError(f"tensor must be a matrix of layout torch.sparse_bsr, got {tensor.layout}")
        crow, col, values = (part.detach() for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()))
        return cls.from_parts(crow, col, values, (tensor.shape[0], tensor.shape[1]))

    def with_values(self, values: Tensor) -> "BSR":
        """Other values at the same pattern."""
        return BSR(values, self.pattern, self.shape)

    def gather(self, dense: Tensor) -> "BSR":
        """The blocks of a dense (N, K) matrix at the same pattern; differentiable in the matrix."""
        return self.with_values(gather_blocks(dense, self.block, self.pattern.flat_indices()))

    # ---- reading

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def blocks(self) -> int:
        """How many blocks are stored."""
        return self.pattern.nnz

    @property
    def density(self) -> float:
        """The fraction of the blocks that are stored."""
        return self.blocks / max(1, self.pattern.shape[0] * self.pattern.shape[1])

    def __repr__(self) -> str:
        return (
            f"BSR(shape={self.shape}, block={self.block}, blocks={self.blocks:,}, density={self.density:.3%}, "
            f"dtype={self.dtype}, device={self.device})"
        )

    # ---- conversion

    def to_dense(self) -> Tensor:
        """(N, K), zero off the pattern; differentiable in ``values``."""
        grid, (height, width) = self.pattern.shape, self.block
        dense = self.values.new_zeros(grid[0] * grid[1], height, width)
        dense = dense.index_copy(0, self.pattern.flat_indices(), self.values)
        dense = dense.view(*grid, height, width).transpose(1, 2).reshape(grid[0] * height, grid[1] * width)
        return dense[: self.shape[0], : self.shape[1]].contiguous()

    def to_torch(self) -> Tensor:
        """A detached ``torch.sparse_bsr`` tensor that shares ``values``.

        Raises:
            ValueError: blocks reach over the edge of the matrix, which torch does not have.
        """
        if any(side % part for side, part in zip(self.shape, self.block, strict=True)):
            raise ValueError(f"torch.sparse_bsr needs a shape divisible by {self.block}, got {self.shape}")
        return torch.sparse_bsr_tensor(self.crow_indices, self.col_indices, self.values.detach(), self.shape)

    def transpose(self) -> "BSR":
        """The (K, N) transpose, differentiable in ``values``."""
        values = self.values[self.pattern.perm.long()].transpose(1, 2).contiguous()
        return BSR(values, self.pattern.transpose(), self.shape[::-1])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "BSR":
        """On another device, or with values of another dtype; indices keep theirs."""
        device = self.device if device is None else device
        return BSR(self.values.to(device=device, dtype=dtype or self.dtype), self.pattern.to(device), self.shape)

    def validate(self) -> None:
        """Check every invariant of the format.

        Raises:
            ValueError: naming the first one that is broken.
        """
        checked = BSR.from_parts(self.crow_indices, self.col_indices, self.values, self.shape)
        _require_transpose(self.pattern, checked.pattern)


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
