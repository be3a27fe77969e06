"""``adamw_select_`` against its reference, and against ``adamw_project_`` where every position is active."""

from dataclasses import dataclass, replace

import pytest
import torch
from opcases import BUDGETS, Budget, Draw
from test_adamw_project import BETAS, DECAY, EPS, LR, SCALE, Matrices, assert_pattern_of, both_dtypes
from test_adamw_project import step as project_step
from torch import Tensor

from sparsekern import Pattern
from sparsekern.ops import ActiveMatrix, adamw_select_, check_status, reference

CANDIDATE_BETA1 = 0.97


@dataclass(frozen=True)
class Active:
    """An (n, k) matrix with ``active`` positions, of which ``keep`` are the support."""

    n: int
    k: int
    active: int
    keep: int
    floor: int = 0
    axis: int | None = None

    def __str__(self) -> str:
        floor = "" if self.axis is None else f",floor={self.floor},axis={self.axis}"
        return f"{self.n}x{self.k},active={self.active},keep={self.keep}{floor}"


CASES = (
    Active(257, 70, 9000, 5000),
    Active(5, 7, 20, 9),
    Active(1, 1, 1, 1),
    Active(1, 1, 1, 0),
    Active(33, 70, 200, 100),
    Active(5, 7, 9, 9),  # no candidates
    Active(5, 7, 0, 0),
    Active(0, 7, 0, 0),
    Active(7, 0, 0, 0),
    Active(0, 7, 0, 0, floor=2, axis=0),
    Active(70, 257, 1500, 300, floor=2, axis=0),
    Active(33, 600, 6000, 1400, floor=2, axis=1),
    Active(70, 257, 1500, 280, floor=4, axis=0),  # the floor takes the whole budget
    Active(70, 257, 6000, 1028, floor=4, axis=1),
    Active(70, 257, 400, 300, floor=4, axis=0),  # some neurons have fewer active positions than the floor
    Active(20, 300, 1400, 1300, floor=4, axis=1),
    Active(3, 90000, 160000, 60000),  # the cut is guessed from a sample; on a GPU warps have several segments
)
MANY = tuple(Active(3 + i % 5, 4 + i % 7, 9 + i % 3, 5 + i % 4) for i in range(70))


def active_matrix(case: Active, draw: Draw, index: torch.dtype) -> ActiveMatrix:
    """A random one that is some steps old; positions joined at different times."""
    csr = draw.csr(case.n, case.k, case.active)
    values, where = csr.values, torch.get_default_device()
    chosen = torch.randperm(case.active, generator=draw.generator, device="cpu")[: case.keep].sort().values.to(where)
    in_support = torch.zeros(case.active, dtype=torch.bool).index_fill_(0, chosen, True)
    joined = draw.ids((case.active,), 5).to(values.dtype)
    lengths = (case.n + 1, case.keep, case.k + 1, case.keep, case.keep)
    return ActiveMatrix(
        weight=values * in_support,
        grad=draw.normal(case.active),
        exp_avg=draw.normal(case.active),
        exp_avg_sq=draw.normal(case.active).square(),
        joined=joined,
        step=torch.full((), 5.0),
        in_support=in_support,
        active_crow=csr.crow_indices.to(index),
        active_col=csr.col_indices.to(index),
        slots=torch.full((case.keep,), -1, dtype=index),
        pattern=Pattern(*(torch.full((length,), -1, dtype=index) for length in lengths), (case.n, case.k)),
        floor=case.floor,
        axis=case.axis,
    )


def in_float64(m: ActiveMatrix) -> ActiveMatrix:
    names = ("weight", "grad", "exp_avg", "exp_avg_sq", "joined")
    copies = {name: getattr(m, name).cpu().double().clone() for name in names}
    moved = {name: getattr(m, name).cpu().clone() for name in ("in_support", "active_crow", "active_col", "step")}
    return replace(m, **copies, **moved)


def scalar(value: float) -> Tensor:
    return torch.full((), value, dtype=torch.float64)


def step(matrices: list[ActiveMatrix], candidate_beta1: float = CANDIDATE_BETA1) -> None:
    rule = {"betas": BETAS, "candidate_beta1": candidate_beta1, "eps": EPS, "weight_decay": DECAY}
    adamw_select_(matrices, lr=scalar(LR), grad_scale=scalar(SCALE), **rule)


def check_steps(cases: tuple[Active, ...], dtype: torch.dtype, steps: int, index: torch.dtype) -> None:
    draw = Draw(dtype)
    matrices = [active_matrix(case, draw, index) for case in cases]
    expected = [in_float64(m) for m in matrices]
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    for _ in range(steps):
        for case, m, e in zip(cases, matrices, expected, strict=True):
            grad = draw.normal(case.active)
            m.grad.copy_(grad)
            e.grad.copy_(grad)
            m.step.add_(1)
            e.step.add_(1)
            reference.adamw_select_(
                e,
                **{"lr": LR, "grad_scale": SCALE, "betas": BETAS, "candidate_beta1": CANDIDATE_BETA1},
                **{"eps": EPS, "weight_decay": DECAY},
            )
        step(matrices)
        for case, m, e in zip(cases, matrices, expected, strict=True):
            assert torch.equal(m.in_support.cpu(), e.in_support), case
            for name in ("weight", "exp_avg", "exp_avg_sq"):
                actual = getattr(m, name).cpu().double()
                torch.testing.assert_close(actual, getattr(e, name), rtol=tolerance, atol=tolerance)
            assert_support_of(m)


def assert_support_of(m: ActiveMatrix) -> None:
    """Slots and pattern name the positions that are flagged, in both layouts, and the weight is 0 elsewhere."""
    assert torch.equal(m.slots.long(), m.in_support.nonzero().flatten())
    assert (m.weight[~m.in_support] == 0).all()
    rows = torch.repeat_interleave(torch.arange(m.pattern.shape[0]), m.active_crow.diff().long())
    at = m.slots.long()
    dense = m.weight.new_zeros(m.pattern.shape)
    dense[rows[at], m.active_col.long()[at]] = 1
    assert_pattern_of(dense, m.pattern)
    assert m.pattern.nnz == m.slots.shape[0]


@both_dtypes
def test_every_rule(dtype: torch.dtype, backend: str) -> None:
    check_steps(CASES, dtype, 3, torch.int32)


def test_many_matrices(backend: str) -> None:
    check_steps(MANY, torch.float32, 2, torch.int32)


def test_wide_indices(backend: str) -> None:
    check_steps(CASES, torch.float32, 1, torch.int64)


def everything(budget: Budget, like: Matrices, i: int) -> ActiveMatrix:
    """The i-th matrix with every position active from the beginning."""
    n, k = budget.n, budget.k
    weight = like.weights[i].flatten().clone()
    return ActiveMatrix(
        weight=weight,
        grad=torch.empty_like(weight),
        exp_avg=torch.zeros_like(weight),
        exp_avg_sq=torch.zeros_like(weight),
        joined=torch.zeros_like(weight),
        step=torch.zeros(()),
        in_support=torch.ones(n * k, dtype=torch.bool),
        active_crow=torch.arange(n + 1, dtype=torch.int32) * k,
        active_col=torch.arange(k, dtype=torch.int32).repeat(n),
        slots=torch.empty(budget.keep, dtype=torch.int32),
        pattern=Pattern(*(t.clone() for t in like.patterns[i].tensors), (n, k)),
        floor=budget.floor,
        axis=budget.axis,
    )


@both_dtypes
def test_everything_active_is_adamw_project_bit_for_bit(dtype: torch.dtype, backend: str) -> None:
    draw = Draw(dtype)
    dense = Matrices.draw(BUDGETS, draw)
    active = [everything(budget, dense, i) for i, budget in enumerate(BUDGETS)]
    for _ in range(50 if backend != "emulated" else 5):
        grads = [draw.normal(b.n, b.k) for b in BUDGETS]
        project_step(dense, grads, BUDGETS)
        for m, grad in zip(active, grads, strict=True):
            m.grad.copy_(grad.flatten())
            m.step.add_(1)
        step(active, candidate_beta1=BETAS[0])
        for i, m in enumerate(active):
            assert torch.equal(m.weight, dense.weights[i].flatten()), BUDGETS[i]
            assert torch.equal(m.exp_avg, dense.exp_avgs[i].flatten())
            assert torch.equal(m.exp_avg_sq, dense.exp_avg_sqs[i].flatten())
            for a, b in zip(m.pattern.tensors, dense.patterns[i].tensors, strict=True):
                assert torch.equal(a, b)


def test_a_young_candidate_needs_a_steady_gradient(backend: str) -> None:
    """One gradient moves a position that was always active by lr; a new candidate by (1 - candidate_beta1) of it."""
    m = active_matrix(Active(1, 2, 2, 2), Draw(torch.float64), torch.int32)
    for t in (m.weight, m.exp_avg, m.exp_avg_sq):
        t.zero_()
    m.in_support.fill_(False)
    m.grad.fill_(1e6)  # beside which eps is nothing
    m.joined.copy_(torch.tensor([0.0, 4.0]))
    m.step.fill_(5)
    step([m])
    corrections = (1 - BETAS[1]) / (1 - BETAS[1] ** 5)  # of the older one's second moment
    old = -LR * (1 - CANDIDATE_BETA1) / (1 - CANDIDATE_BETA1**5) / corrections**0.5
    expected = torch.tensor([old, -LR * (1 - CANDIDATE_BETA1)], dtype=torch.float64) * (1 - LR * DECAY)
    torch.testing.assert_close(m.weight, expected, rtol=1e-6, atol=0)


def test_nan_leaves_the_support_on_the_cpu_and_names_the_matrix(isa: str) -> None:
    cases = (Active(5, 7, 20, 9), Active(5, 7, 20, 9, floor=1, axis=0), Active(5, 7, 20, 9))
    matrices = [active_matrix(case, Draw(torch.float32), torch.int32) for case in cases]
    before = matrices[1].in_support.clone()
    matrices[1].grad[3] = torch.nan
    with pytest.raises(RuntimeError, match=r"adamw_select_: weights\[1\] must not contain NaN, found one at \[3\]"):
        step(matrices)
    assert torch.equal(matrices[1].in_support, before)
    assert_support_of(matrices[0])
    assert_support_of(matrices[2])


def test_nan_on_a_gpu_is_reported_and_stays_visible(gpu_backend: str) -> None:
    cases = (Active(5, 7, 20, 9), Active(5, 7, 20, 9, floor=1, axis=0))
    matrices = [active_matrix(case, Draw(torch.float32), torch.int32) for case in cases]
    matrices[1].grad[3] = torch.nan
    step(matrices)
    assert matrices[1].weight.isnan().nonzero().tolist() == [[3]]
    if gpu_backend == "cuda":
        with pytest.raises(RuntimeError, match="adamw_select_: weight must not contain NaN, .* flat index 3"):
            check_status()
    check_status()


def test_autograd_sees_the_change(backend: str) -> None:
    m = active_matrix(Active(5, 7, 20, 9), Draw(torch.float32), torch.int32)
    w = m.weight.requires_grad_()
    loss = (w * w).sum()
    step([m])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
