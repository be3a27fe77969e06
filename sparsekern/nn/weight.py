"""``SparseWeight`` owns a sparse matrix: the layers hold one, the optimizer knows nothing else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats import CSR, ActivePattern, Pattern, is_among
from ..ops.choice import KernelChoice, choose_linear
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
        self.shape = csr.shape
        self.floor = floor
        self.axis = axis
        self.budget = csr.nnz
        self.values = nn.Parameter(csr.values.detach().clone())
        self.register_buffer("crow_indices", csr.crow_indices)
        self.register_buffer("col_indices", csr.col_indices)
        for name in _TRANSPOSE:
            self.register_buffer(name, getattr(csr.pattern, name), persistent=False)
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
        if self.choice().kernel == "dense":
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
        n, k = self.shape
        dtype = torch.int32 if max(n, k, nnz) < 2**31 else torch.int64
        lengths = (n + 1, nnz, k + 1, nnz, nnz)
        crow, col, ccol, row, perm = (torch.empty(length, dtype=dtype, device=self.device) for length in lengths)
        return Pattern(crow, col, ccol, row, perm, self.shape)

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
        values = saved.get("values", torch.zeros(col.shape, device=col.device))
        support = CSR.from_parts(saved["crow_indices"], col, values, self.shape)
        active = slots = None
        if form == "active":
            crow, col = (saved[name] for name in _ACTIVE)
            active = CSR.from_parts(crow, col, saved["active"], self.shape)
            slots = _slots(active, support)
        if form != self.form:
            length = saved[form].shape if master is not None else (len(saved[form]),)
            self._set_parameter(form, torch.zeros(length, dtype=self.dtype, device=self.device))
        elif self.parameter.shape != saved[form].shape:
            _replace_data(self.parameter, self.parameter.data.new_zeros(saved[form].shape))
        indices = (support.crow_indices, support.col_indices)
        self._set_pattern(*(t.to(self.device, copy=True) for t in indices))
        self.budget = support.nnz
        if active is not None and slots is not None:
            where = (active.crow_indices, active.col_indices, slots)
            crow, col, slots = (t.to(self.device, copy=True) for t in where)
            self.set_active_(crow, col, self.active.data, slots)


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


def _slots(active: CSR, support: CSR) -> Tensor:
    """(nnz) which of the active positions are the support; ValueError if these two do not fit."""
    places, held = active.pattern.flat_indices(), support.pattern.flat_indices()
    if not is_among(held, places).all():
        raise ValueError("active_crow_indices and active_col_indices must contain all of crow_indices and col_indices")
    slots = torch.searchsorted(places, held)
    if active.values.index_fill(0, slots, 0).any():
        raise ValueError("active must be 0 outside of crow_indices and col_indices")
    return slots
