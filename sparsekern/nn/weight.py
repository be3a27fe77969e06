"""``SparseWeight`` owns a sparse matrix: the layers hold one, the optimizer knows nothing else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats import (
    BSR,
    CSR,
    ActivePattern,
    Block,
    Pattern,
    block_norms,
    block_sides,
    clear_over_edge_,
    flat_indices,
    gather_blocks,
    grid_shape,
    is_among,
)
from ..ops.bsr_linear import bsr_linear
from ..ops.bsr_linear_active import bsr_linear_active
from ..ops.choice import KernelChoice, choose_linear, is_dense_faster
from ..ops.csr_embedding import csr_embedding, csr_embedding_active
from ..ops.csr_linear import csr_linear
from ..ops.csr_linear_active import csr_linear_active
from ..ops.csr_linear_dense_grad import csr_linear_dense_grad
from ..ops.csr_pattern import csr_gather
from ..ops.observe import observe
from ..ops.topk_project import topk_project_pattern_

_TRANSPOSE = ("ccol_indices", "row_indices", "perm")
_ACTIVE = ("active_crow_indices", "active_col_indices")
_FORMS = {"values": (), "master": (), "active": _ACTIVE}  # the Parameter of each form: the buffers it brings along


class SparseWeight(nn.Module):
    """A sparse (N, K) weight in one of three forms.

    *values*: a Parameter ``values`` (nnz) over a fixed pattern. Forward and backward cost what the nonzeros cost; any
    optimizer can train it. This is the form of a new layer.

    *active*: a Parameter ``active`` over the pattern, the support, and candidate positions beside it, where it is
    zero. The forward pass costs what the support costs, and the gradient covers the candidates. This is the form of
    sparse mode: ``SparseAdamW(mode="sparse")`` asks for it and moves the support after every step.

    *master*: a dense Parameter ``master`` (N, K), zero off the pattern, whose gradient is dense. This is the form of
    exact mode: ``SparseAdamW(mode="exact")`` asks for it and calls :meth:`project_` after every step.

    In the last two ``values`` reads the Parameter at the pattern.

    Attributes:
        crow_indices, col_indices: the pattern, int32 (int64 where a count would overflow); saved with the module.
        floor, axis: nonzeros that a projection keeps at least in every row (axis 0) or column (axis 1).
        budget: nonzeros that the next projection keeps; not saved with the module, which begins with those it has.
        observed: while it is not None, the activity of the layer's rows and columns is measured in its gradients: two
            leaf tensors (N) and (K), see :func:`sparsekern.ops.observe`.
    """

    block: tuple[int, int] | None = None  # of a BlockSparseWeight
    unit = "nonzeros"  # what a position holds
    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor | None
    row_indices: Tensor | None
    perm: Tensor | None
    active_crow_indices: Tensor | None
    active_col_indices: Tensor | None
    slots: Tensor | None  # (nnz), which of the active positions the support is
    in_support: Tensor | None  # (active) bool, the same as flags
    observed: tuple[Tensor, Tensor] | None

    def __init__(self, csr: CSR, *, floor: int = 0, axis: int | None = None) -> None:
        super().__init__()
        self._begin(csr.values, csr.pattern, csr.shape, floor, axis)

    def _begin(self, values: Tensor, pattern: Pattern, shape: tuple[int, int], floor: int, axis: int | None) -> None:
        self.shape = shape
        self.floor = floor
        self.axis = axis
        self.budget = pattern.nnz
        self.values = nn.Parameter(values.detach().clone())
        self.register_buffer("crow_indices", pattern.crow_indices)
        self.register_buffer("col_indices", pattern.col_indices)
        for name in _TRANSPOSE:
            self.register_buffer(name, getattr(pattern, name), persistent=False)
        for name in _ACTIVE:
            self.register_buffer(name, None)
        for name in ("slots", "in_support"):
            self.register_buffer(name, None, persistent=False)
        self.observed = None

    @classmethod
    def from_master(cls, master: Tensor, *, floor: int = 0, axis: int | None = None) -> "SparseWeight":
        """A weight in master form that is dense so far: every position of ``master`` (N, K) belongs to its pattern."""
        n, k = master.shape
        weight = cls(CSR.random(n, k, nnz=0, dtype=master.dtype), floor=floor, axis=axis)
        weight._begin_dense(master)
        return weight

    def _begin_dense(self, master: Tensor) -> None:
        """Take the master form with every position."""
        (rows, cols), device = self.grid, master.device
        del self.values
        self.master = nn.Parameter(master.detach().clone(memory_format=torch.contiguous_format))
        dtype = torch.int32 if self.positions < 2**31 else torch.int64
        crow = torch.arange(rows + 1, device=device).mul_(cols).to(dtype)
        self._set_pattern(crow, torch.arange(cols, dtype=dtype, device=device).repeat(rows))
        self.budget = self.positions

    @classmethod
    def from_parameter(cls, dense: Tensor, *, nnz: int | None = None, density: float | None = None) -> "SparseWeight":
        """The largest magnitudes of a dense Parameter (N, K), exactly ``nnz`` of them; frozen if that is frozen."""
        weight = cls(CSR.from_dense(dense, nnz=nnz, density=density))
        weight.values.requires_grad_(dense.requires_grad)
        return weight

    # ---- reading

    def __getattr__(self, name: str) -> Any:
        if name == "values" and "master" in self._parameters:
            return self._gather(self.master)
        if name == "values" and "active" in self._parameters:
            return self.active.index_select(0, self.slots)
        return super().__getattr__(name)

    @property
    def form(self) -> str:
        """ "values", "active" or "master": the name of the one Parameter."""
        return next(form for form in _FORMS if form in self._parameters)

    @property
    def parameter(self) -> nn.Parameter:
        """The one Parameter."""
        return self._parameters[self.form]  # type: ignore[return-value]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        return self.shape

    @property
    def positions(self) -> int:
        """How many positions there are; floor, budget and nnz count some of them."""
        return self.grid[0] * self.grid[1]

    @property
    def nnz(self) -> int:
        return self.col_indices.shape[0]

    @property
    def entries(self) -> int:
        """How many numbers are stored."""
        return self.nnz

    @property
    def density(self) -> float:
        return self.nnz / max(1, self.positions)

    @property
    def dtype(self) -> torch.dtype:
        return self.parameter.dtype

    @property
    def device(self) -> torch.device:
        return self.parameter.device

    @property
    def pattern(self) -> Pattern:
        if self.perm is None:
            built = Pattern.build(self.crow_indices, self.col_indices, self.grid)
            for name in _TRANSPOSE:
                setattr(self, name, getattr(built, name))
        assert self.ccol_indices is not None
        assert self.row_indices is not None
        assert self.perm is not None
        return Pattern(self.crow_indices, self.col_indices, self.ccol_indices, self.row_indices, self.perm, self.grid)

    @property
    def active_pattern(self) -> ActivePattern:
        """Of the active form: its positions, and which of them are the support."""
        assert self.active_crow_indices is not None
        assert self.active_col_indices is not None
        assert self.slots is not None
        return ActivePattern(self.active_crow_indices, self.active_col_indices, self.slots, self.pattern)

    @property
    def csr(self) -> CSR:
        """The weight as a format object, differentiable in the Parameter."""
        return CSR(self.values, self.pattern)

    def to_dense(self) -> Tensor:
        """(N, K), zero off the pattern; differentiable in the Parameter."""
        return self.csr.to_dense()

    def _gather(self, dense: Tensor) -> Tensor:
        """An (N, K) matrix at the pattern."""
        return csr_gather(dense, self.crow_indices, self.col_indices)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, nnz={self.nnz}, density={self.density:.3%}, form={self.form}"

    # ---- computing

    def choice(self) -> KernelChoice:
        """Which kernel :meth:`linear` runs, and why."""
        if self.form != "master":
            return KernelChoice("csr", f"{self.extra_repr()}: only the nonzeros are stored")
        return choose_linear(self.shape, self.nnz, self.dtype, self.device.type)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias``: (..., K) -> (..., N)."""
        y = self._linear(x, bias)
        if self.observed is None:
            return y
        row_squares, col_squares = self.observed
        return observe(y, x, row_squares, col_squares)

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.form == "values":
            return csr_linear(x, self.csr, bias)
        if self.form == "active":
            return csr_linear_active(x, self.active, self.active_pattern, bias)
        if is_dense_faster(self.shape, self.nnz, self.device.type):
            return _dense_linear(x, self.master, bias)
        return csr_linear_dense_grad(x, self.master, self.pattern, bias)

    def embedding(self, ids: Tensor) -> Tensor:
        """Rows of the table: (...) int64 -> (..., K)."""
        rows = self._embedding(ids)
        if self.observed is None:
            return rows
        row_squares, col_squares = self.observed
        return observe(rows, ids, col_squares, row_squares)  # rows = one_hot(ids) @ W

    def _embedding(self, ids: Tensor) -> Tensor:
        if self.form == "values":
            return csr_embedding(ids, self.csr)
        if self.form == "active":
            return csr_embedding_active(ids, self.active, self.active_pattern)
        return F.embedding(ids, self.master)

    # ---- changing

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the ``budget`` largest magnitudes of the master (``floor`` of every neuron first), zero the rest.

        Raises:
            RuntimeError: the weight is not in master form, or holds NaN.
            ValueError: the budget is below what the floor needs, or above N * K.
        """
        if self.form != "master":
            raise RuntimeError("project_: only a weight in master form can be projected (see to_master_)")
        self._set_pattern(*topk_project_pattern_(self.master, self.budget, self.floor, self.axis))

    def next_pattern(self, nnz: int) -> Pattern:
        """Index tensors for the ``nnz`` positions of the next step, to be overwritten and then given to
        :meth:`set_pattern_`: the weight's own where they have the length, so that a captured CUDA graph, which knows
        them by address, sees each new pattern."""
        if nnz == self.nnz:
            return self.pattern
        n, k = self.grid
        dtype = torch.int32 if max(n, k, nnz) < 2**31 else torch.int64
        lengths = (n + 1, nnz, k + 1, nnz, nnz)
        crow, col, ccol, row, perm = (torch.empty(length, dtype=dtype, device=self.device) for length in lengths)
        return Pattern(crow, col, ccol, row, perm, self.grid)

    def set_pattern_(self, pattern: Pattern, slots: Tensor | None = None) -> None:
        """Take ``pattern``, off which the Parameter is zero; in the active form ``slots`` are its positions there."""
        self._set_pattern(pattern.crow_indices, pattern.col_indices)
        for name in _TRANSPOSE:
            setattr(self, name, getattr(pattern, name))
        self.slots = slots

    def observe_(self, on: bool = True) -> None:
        """Let the coming forward and backward passes measure the activity of rows and columns, or no longer."""
        leaves = (torch.zeros(size, dtype=self.dtype, device=self.device, requires_grad=True) for size in self.shape)
        self.observed = tuple(leaves) if on else None  # type: ignore[assignment]

    def to_values_(self) -> "SparseWeight":
        """Switch to the values form, in place; all else is dropped. An optimizer must be built afterwards."""
        if self.form != "values":
            self._set_parameter("values", self.values.detach().clone())
        return self

    def to_active_(self) -> "SparseWeight":
        """Switch to the active form, in place, without candidates. An optimizer must be built afterwards."""
        if self.form != "active":
            self._set_parameter("active", self.values.detach().clone())
            everything = torch.arange(self.nnz, device=self.device)
            self.set_active_(self.crow_indices.clone(), self.col_indices.clone(), self.active.data, everything)
        return self

    def to_master_(self) -> "SparseWeight":
        """Switch to the master form, in place, with zeros off the pattern. An optimizer must be built afterwards."""
        if self.form != "master":
            self._set_parameter("master", self.to_dense().detach())
        return self

    def set_active_(self, crow: Tensor, col: Tensor, active: Tensor, slots: Tensor) -> None:
        """Take other active positions: all of the support and other candidates. The Parameter stays the same object.

        Args:
            crow, col: (N + 1) and (active), the positions in the order of CSR.
            active: (active), zero outside of the support.
            slots: (nnz) which of them are the support, ascending.
        """
        self.active_crow_indices, self.active_col_indices = crow, col
        self.slots = slots.to(col.dtype)
        self.in_support = torch.zeros(len(col), dtype=torch.bool, device=col.device).index_fill_(0, slots.long(), True)
        _replace_data(self.active, active)

    def _set_parameter(self, form: str, data: Tensor) -> None:
        """Replace the Parameter by one of another form."""
        requires_grad = self.parameter.requires_grad
        delattr(self, self.form)
        for name in (*_ACTIVE, "slots", "in_support"):
            setattr(self, name, None)
        self.observed = None
        setattr(self, form, nn.Parameter(data, requires_grad))

    def _set_pattern(self, crow: Tensor, col: Tensor) -> None:
        self.crow_indices, self.col_indices = crow, col
        for name in _TRANSPOSE:  # built when next asked for
            setattr(self, name, None)

    # ---- checkpoints: the form and the number of nonzeros follow the checkpoint

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = ("crow_indices", "col_indices", *_ACTIVE, *_FORMS)
        saved = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if saved:
            try:
                self._take_layout(saved)
            except (ValueError, RuntimeError) as error:
                args[-1].append(f"{prefix[:-1]}: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _matrix(self, crow: Tensor, col: Tensor, values: Tensor | None) -> CSR | BSR:
        """A checkpoint's parts, validated."""
        values = torch.zeros(len(col), device=col.device) if values is None else values
        return CSR.from_parts(crow, col, values, self.grid)

    def _take_layout(self, saved: dict[str, Tensor]) -> None:
        """Take form, pattern and length of ``saved``, or raise and change nothing."""
        form = next((form for form in _FORMS if form in saved), "values")
        if set(saved) != {"crow_indices", "col_indices", form, *_FORMS[form]}:
            raise ValueError(
                "expected crow_indices, col_indices and one of values, master, or active with active_crow_indices and "
                f"active_col_indices, got {', '.join(saved)}"
            )
        master, col = saved.get("master"), saved["col_indices"]
        if master is not None and master.shape != self.shape:
            raise ValueError(f"master must have shape {self.shape}, got {tuple(master.shape)}")
        support = self._matrix(saved["crow_indices"], col, saved.get("values"))
        active = slots = None
        if form == "active":
            crow, col = (saved[name] for name in _ACTIVE)
            active = self._matrix(crow, col, saved["active"])
            slots = _slots(active, support)
        if form != self.form:
            self._set_parameter(form, torch.zeros(saved[form].shape, dtype=self.dtype, device=self.device))
        elif self.parameter.shape != saved[form].shape:
            _replace_data(self.parameter, self.parameter.data.new_zeros(saved[form].shape))
        indices = (support.crow_indices, support.col_indices)
        self._set_pattern(*(t.to(self.device, copy=True) for t in indices))
        self.budget = support.pattern.nnz
        if active is not None and slots is not None:
            where = (active.crow_indices, active.col_indices, slots)
            crow, col, slots = (t.to(self.device, copy=True) for t in where)
            self.set_active_(crow, col, self.active.data, slots)


class BlockSparseWeight(SparseWeight):
    """A :class:`SparseWeight` of dense blocks.

    Its positions are those of the grid that cuts the matrix into blocks: pattern, ``nnz``, ``budget``, ``floor`` and
    ``density`` count blocks, and a projection keeps those of largest norm. ``values`` and ``active`` have shape
    (positions, *block); ``master`` is (N, K). In master form the layer is computed as a dense one.
    """

    block: tuple[int, int]
    unit = "blocks"

    def __init__(self, bsr: BSR, *, floor: int = 0, axis: int | None = None) -> None:
        nn.Module.__init__(self)
        self.block = bsr.block
        self._begin(bsr.values, bsr.pattern, bsr.shape, floor, axis)
        self.clear_over_edge_()

    @classmethod
    def from_master(  # type: ignore[override]
        cls, master: Tensor, block: Block, *, floor: int = 0, axis: int | None = None
    ) -> "BlockSparseWeight":
        """A weight in master form that is dense so far. Sides that there are no kernels for will do in this form."""
        sides = (block, block) if isinstance(block, int) else (block[0], block[1])
        if min(sides) < 1:
            raise ValueError(f"block must have positive sides, got {block}")
        weight = cls.__new__(cls)
        nn.Module.__init__(weight)
        weight.block = sides
        shape = (master.shape[0], master.shape[1])
        nothing = CSR.random(*grid_shape(shape, sides), nnz=0).pattern
        weight._begin(master.new_empty(0, *sides), nothing, shape, floor, axis)
        weight._begin_dense(master)
        return weight

    @classmethod
    def from_parameter(  # type: ignore[override]
        cls, dense: Tensor, block: Block, *, blocks: int | None = None, density: float | None = None
    ) -> "BlockSparseWeight":
        """The blocks of largest norm of a dense Parameter (N, K), exactly ``blocks``; frozen if that is frozen."""
        weight = cls(BSR.from_dense(dense, block, blocks=blocks, density=density))
        weight.values.requires_grad_(dense.requires_grad)
        return weight

    @property
    def grid(self) -> tuple[int, int]:
        return grid_shape(self.shape, self.block)

    @property
    def entries(self) -> int:
        total = self.nnz * self.block[0] * self.block[1]
        if self.grid[0] * self.block[0] == self.shape[0] and self.grid[1] * self.block[1] == self.shape[1]:
            return total
        inside = torch.ones(self.nnz, *self.block, dtype=torch.bool, device=self.device)
        return int(clear_over_edge_(inside, self.crow_indices, self.col_indices, self.shape).sum())

    @property
    def bsr(self) -> BSR:
        """The weight as a format object, differentiable in the Parameter."""
        return BSR(self.values, self.pattern, self.shape)

    @property
    def csr(self) -> CSR:
        raise TypeError("a weight of blocks has no csr: see bsr")

    def to_dense(self) -> Tensor:
        """(N, K), zero off the pattern; differentiable in the Parameter."""
        return self.master.clone() if self.form == "master" else self.bsr.to_dense()

    def _gather(self, dense: Tensor) -> Tensor:
        return gather_blocks(dense, self.block, flat_indices(self.crow_indices, self.col_indices, self.grid[1]))

    @torch.no_grad()
    def clear_over_edge_(self) -> None:
        """Let blocks be 0 over the edge of the matrix: an optimizer compares their norms. There, gradients are 0."""
        if self.form == "values":
            clear_over_edge_(self.values.data, self.crow_indices, self.col_indices, self.shape)
        elif self.form == "active":
            where = self.active_pattern
            clear_over_edge_(self.active.data, where.crow_indices, where.col_indices, self.shape)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.clear_over_edge_()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block={self.block}"

    def choice(self) -> KernelChoice:
        """Which kernel :meth:`linear` runs, and why."""
        if self.form == "master":
            return KernelChoice("dense", f"{self.extra_repr()}: the gradient is dense")
        return KernelChoice("bsr", f"{self.extra_repr()}: only the blocks are stored")

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.form == "values":
            return bsr_linear(x, self.bsr, bias)
        if self.form == "active":
            return bsr_linear_active(x, self.active, self.active_pattern, self.shape[0], bias)
        return _dense_linear(x, self.master, bias)

    def _embedding(self, ids: Tensor) -> Tensor:
        raise RuntimeError("a weight of blocks is no table of embeddings")

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the ``budget`` blocks of largest norm of the master (``floor`` of every neuron first), zero the rest.

        Raises:
            RuntimeError: the weight is not in master form, or holds NaN.
            ValueError: the budget is below what the floor needs, or above the number of blocks.
        """
        if self.form != "master":
            raise RuntimeError("project_: only a weight in master form can be projected (see to_master_)")
        norms = block_norms(self.master.detach(), self.block)
        crow, col = topk_project_pattern_(norms, self.budget, self.floor, self.axis)
        kept = norms.ne(0).repeat_interleave(self.block[0], 0).repeat_interleave(self.block[1], 1)
        self.master.mul_(kept[: self.shape[0], : self.shape[1]])
        self._set_pattern(crow, col)

    def _set_parameter(self, form: str, data: Tensor) -> None:
        block_sides(self.block)  # there must be kernels for the form
        super()._set_parameter(form, data)

    def _matrix(self, crow: Tensor, col: Tensor, values: Tensor | None) -> CSR | BSR:
        if values is None:
            return super()._matrix(crow, col, values)
        if values.shape[1:] != self.block:
            raise ValueError(f"blocks must have shape {self.block}, got {tuple(values.shape[1:])}")
        return BSR.from_parts(crow, col, values, self.shape)


def _dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own, which wants weight and bias as narrow as ``x``."""
    if x.dtype in (torch.bfloat16, torch.float16):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.linear(x, weight, bias)


def _replace_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Let the Parameter have another length."""
    parameter.grad = None
    # another dtype in between makes autograd forget the node that accumulates gradients, which knows the old length and
    # lives on with any graph (a loss, say) that is still held
    parameter.data = data.new_empty(0, dtype=torch.float16)
    parameter.data = data


def _slots(active: CSR | BSR, support: CSR | BSR) -> Tensor:
    """(nnz) which of the active positions are the support; ValueError if these two do not fit."""
    places, held = active.pattern.flat_indices(), support.pattern.flat_indices()
    if not is_among(held, places).all():
        raise ValueError("active_crow_indices and active_col_indices must contain all of crow_indices and col_indices")
    slots = torch.searchsorted(places, held)
    if active.values.index_fill(0, slots, 0).any():
        raise ValueError("active must be 0 outside of crow_indices and col_indices")
    return slots
