"""``SparseWeight`` owns a sparse matrix: the layers hold one, the optimizer knows nothing else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats import CSR, Pattern
from ..ops.choice import KernelChoice, choose_linear
from ..ops.csr_embedding import csr_embedding
from ..ops.csr_linear import csr_linear
from ..ops.csr_linear_dense_grad import csr_linear_dense_grad
from ..ops.csr_pattern import csr_gather
from ..ops.topk_project import topk_project_pattern_

_TRANSPOSE = ("ccol_indices", "row_indices", "perm")


class SparseWeight(nn.Module):
    """A sparse (N, K) weight in one of two forms.

    *values*: a Parameter ``values`` (nnz) over a fixed pattern. Forward and backward cost what the nonzeros cost; any
    optimizer can train it. This is the form of a new layer.

    *master*: a dense Parameter ``master`` (N, K), zero off the pattern, whose gradient is dense. This is the form of
    exact mode: ``SparseAdamW(mode="exact")`` asks for it and calls :meth:`project_` after every step. ``values``
    then reads the master at the pattern.

    Attributes:
        crow_indices, col_indices: the pattern, int32 (int64 where a count would overflow); saved with the module.
        floor, axis: nonzeros that a projection keeps at least in every row (axis 0) or column (axis 1).
        budget: nonzeros that the next projection keeps.
    """

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor | None
    row_indices: Tensor | None
    perm: Tensor | None

    def __init__(self, csr: CSR, *, floor: int = 0, axis: int | None = None) -> None:
        super().__init__()
        self.shape = csr.shape
        self.floor = floor
        self.axis = axis
        self.budget = csr.nnz
        self.values = nn.Parameter(csr.values.detach().clone())
        self.register_buffer("crow_indices", csr.crow_indices)
        self.register_buffer("col_indices", csr.col_indices)
        for name in _TRANSPOSE:
            self.register_buffer(name, getattr(csr.pattern, name), persistent=False)

    @classmethod
    def from_master(cls, master: Tensor, *, floor: int = 0, axis: int | None = None) -> "SparseWeight":
        """A weight in master form that is dense so far: every position of ``master`` (N, K) belongs to its pattern."""
        n, k = master.shape
        weight = cls(CSR.random(n, k, nnz=0, dtype=master.dtype), floor=floor, axis=axis)
        del weight.values
        weight.master = nn.Parameter(master.detach().clone(memory_format=torch.contiguous_format))
        dtype = torch.int32 if n * k < 2**31 else torch.int64
        crow = torch.arange(n + 1, device=master.device).mul_(k).to(dtype)
        weight._set_pattern(crow, torch.arange(k, dtype=dtype, device=master.device).repeat(n))
        weight.budget = n * k
        return weight

    @classmethod
    def from_parameter(cls, dense: Tensor, *, nnz: int | None = None, density: float | None = None) -> "SparseWeight":
        """The largest magnitudes of a dense Parameter (N, K), exactly ``nnz`` of them; frozen if that is frozen."""
        weight = cls(CSR.from_dense(dense, nnz=nnz, density=density))
        weight.values.requires_grad_(dense.requires_grad)
        return weight

    # ---- reading

    def __getattr__(self, name: str) -> Any:
        if name == "values" and "master" in self._parameters:
            return csr_gather(self.master, self.crow_indices, self.col_indices)
        return super().__getattr__(name)

    @property
    def is_master(self) -> bool:
        """Whether the weight is in master form."""
        return "master" in self._parameters

    @property
    def parameter(self) -> nn.Parameter:
        """The one Parameter: ``master`` or ``values``."""
        return self._parameters["master" if self.is_master else "values"]  # type: ignore[return-value]

    @property
    def nnz(self) -> int:
        return self.col_indices.shape[0]

    @property
    def density(self) -> float:
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.parameter.dtype

    @property
    def device(self) -> torch.device:
        return self.parameter.device

    @property
    def pattern(self) -> Pattern:
        if self.perm is None:
            built = Pattern.build(self.crow_indices, self.col_indices, self.shape)
            for name in _TRANSPOSE:
                setattr(self, name, getattr(built, name))
        assert self.ccol_indices is not None
        assert self.row_indices is not None
        assert self.perm is not None
        return Pattern(self.crow_indices, self.col_indices, self.ccol_indices, self.row_indices, self.perm, self.shape)

    @property
    def csr(self) -> CSR:
        """The weight as a format object, differentiable in the Parameter."""
        return CSR(self.values, self.pattern)

    def to_dense(self) -> Tensor:
        """(N, K), zero off the pattern; differentiable in the Parameter."""
        return self.csr.to_dense()

    def extra_repr(self) -> str:
        form = "master" if self.is_master else "values"
        return f"{self.shape[0]}, {self.shape[1]}, nnz={self.nnz}, density={self.density:.3%}, form={form}"

    # ---- computing

    def choice(self) -> KernelChoice:
        """Which kernel :meth:`linear` runs, and why."""
        if not self.is_master:
            return KernelChoice("csr", f"{self.extra_repr()}: only the nonzeros are stored")
        return choose_linear(self.shape, self.nnz, self.dtype, self.device.type)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias``: (..., K) -> (..., N)."""
        if not self.is_master:
            return csr_linear(x, self.csr, bias)
        if self.choice().kernel == "dense":
            return F.linear(x, self.master, bias)
        return csr_linear_dense_grad(x, self.master, self.pattern, bias)

    def embedding(self, ids: Tensor) -> Tensor:
        """Rows of the table: (...) int64 -> (..., K)."""
        return F.embedding(ids, self.master) if self.is_master else csr_embedding(ids, self.csr)

    # ---- changing

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the ``budget`` largest magnitudes of the master (``floor`` of every neuron first), zero the rest.

        Raises:
            RuntimeError: the weight is not in master form, or holds NaN.
            ValueError: the budget is below what the floor needs, or above N * K.
        """
        if not self.is_master:
            raise RuntimeError("project_: only a weight in master form can be projected (see to_master_)")
        self._set_pattern(*topk_project_pattern_(self.master, self.budget, self.floor, self.axis))

    def next_pattern(self) -> Pattern:
        """Index tensors for the ``budget`` positions of the next step, to be overwritten and then given to
        :meth:`set_pattern_`: the weight's own where they have the length, so that a captured CUDA graph, which knows
        them by address, sees each new pattern."""
        if self.budget == self.nnz:
            return self.pattern
        n, k = self.shape
        dtype = torch.int32 if max(n, k, self.budget) < 2**31 else torch.int64
        lengths = (n + 1, self.budget, k + 1, self.budget, self.budget)
        crow, col, ccol, row, perm = (torch.empty(length, dtype=dtype, device=self.device) for length in lengths)
        return Pattern(crow, col, ccol, row, perm, self.shape)

    def set_pattern_(self, pattern: Pattern) -> None:
        """Take ``pattern``, off which the master is zero."""
        self._set_pattern(pattern.crow_indices, pattern.col_indices)
        for name in _TRANSPOSE:
            setattr(self, name, getattr(pattern, name))

    def to_sparse_(self) -> "SparseWeight":
        """Switch to the values form, in place; the dense master is dropped. An optimizer must be built afterwards."""
        if self.is_master:
            values = self.values.detach().clone()
            requires_grad = self.master.requires_grad
            del self.master
            self.values = nn.Parameter(values, requires_grad)
        return self

    def to_master_(self) -> "SparseWeight":
        """Switch to the master form, in place, with zeros off the pattern. An optimizer must be built afterwards."""
        if not self.is_master:
            dense = self.to_dense().detach()
            requires_grad = self.values.requires_grad
            del self.values
            self.master = nn.Parameter(dense, requires_grad)
        return self

    def _set_pattern(self, crow: Tensor, col: Tensor) -> None:
        self.crow_indices, self.col_indices = crow, col
        for name in _TRANSPOSE:  # built when next asked for
            setattr(self, name, None)

    # ---- checkpoints: the form and the number of nonzeros follow the checkpoint

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = ("crow_indices", "col_indices", "values", "master")
        saved = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if saved:
            try:
                self._take_layout(saved)
            except (ValueError, RuntimeError) as error:
                args[-1].append(f"{prefix[:-1]}: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _take_layout(self, saved: dict[str, Tensor]) -> None:
        """Take form, pattern and length of ``saved``, or raise and change nothing."""
        if set(saved) not in ({"crow_indices", "col_indices", form} for form in ("values", "master")):
            raise ValueError(f"expected crow_indices, col_indices and either values or master, got {', '.join(saved)}")
        master, col = saved.get("master"), saved["col_indices"]
        if master is not None and master.shape != self.shape:
            raise ValueError(f"master must have shape {self.shape}, got {tuple(master.shape)}")
        values = saved.get("values", torch.zeros(col.shape, device=col.device))
        checked = CSR.from_parts(saved["crow_indices"], col, values, self.shape)
        if master is not None:
            self.to_master_()
        elif self.to_sparse_().nnz != checked.nnz:
            self.values.data = self.values.data.new_zeros(checked.nnz)
            self.values.grad = None
        indices = (checked.crow_indices, checked.col_indices)
        self._set_pattern(*(t.to(self.device, copy=True) for t in indices))
        self.budget = checked.nnz
