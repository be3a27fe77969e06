"""``adamw_project_`` against its reference: many matrices at once, on every backend."""

from dataclasses import dataclass

import pytest
import torch
from opcases import BUDGETS, Budget, Draw, raw
from torch import Tensor

from sparsekern import Pattern
from sparsekern.ops import adamw_project_, check_status, reference

BETAS, EPS, DECAY, LR, SCALE = (0.9, 0.95), 0.1, 0.2, 0.3, 1.7
MANY = tuple(Budget(3 + i % 5, 4 + i % 7, 5 + i % 6) for i in range(70))  # more than one launch's table holds

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


@dataclass
class Matrices:
    weights: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    patterns: list[Pattern]

    @classmethod
    def draw(cls, budgets: tuple[Budget, ...], draw: Draw, index: torch.dtype = torch.int32) -> "Matrices":
        weights = [draw.normal(b.n, b.k) for b in budgets]
        zeros = [torch.zeros_like(w) for w in weights]
        return cls(
            weights,
            zeros,
            [z.clone() for z in zeros],
            [torch.zeros((), device=z.device) for z in zeros],
            [empty_pattern(b, index) for b in budgets],
        )


def empty_pattern(budget: Budget, index: torch.dtype) -> Pattern:
    lengths = (budget.n + 1, budget.keep, budget.k + 1, budget.keep, budget.keep)
    return Pattern(*(torch.full((length,), -1, dtype=index) for length in lengths), (budget.n, budget.k))


def step(m: Matrices, grads: list[Tensor], budgets: tuple[Budget, ...], betas: tuple[float, float] = BETAS) -> None:
    torch._foreach_add_(m.steps, 1)
    device = m.weights[0].device
    adamw_project_(
        m.weights,
        grads,
        m.exp_avgs,
        m.exp_avg_sqs,
        m.steps,
        m.patterns,
        floors=[b.floor for b in budgets],
        axes=[b.axis for b in budgets],
        lr=torch.full((), LR, dtype=torch.float64, device=device),
        grad_scale=torch.full((), SCALE, dtype=torch.float64, device=device),
        betas=betas,
        eps=EPS,
        weight_decay=DECAY,
    )


def assert_pattern_of(weight: Tensor, pattern: Pattern) -> None:
    """The pattern is valid, in both layouts, and holds every entry that is not zero."""
    crow, col = pattern.crow_indices, pattern.col_indices
    raw.csr_validate(crow.cpu(), col.cpu(), weight.shape[1])
    built = Pattern.build(crow, col, pattern.shape)
    for actual, expected in zip(pattern.tensors, built.tensors, strict=True):
        assert torch.equal(actual, expected)
    off = torch.ones_like(weight)
    off[reference.row_indices(built), col.long()] = 0
    assert (weight * off == 0).all()


def check_steps(budgets: tuple[Budget, ...], dtype: torch.dtype, steps: int, index: torch.dtype) -> None:
    draw = Draw(dtype)
    m = Matrices.draw(budgets, draw, index)
    expected = [w.double().clone() for w in m.weights]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in expected]
    for t in range(1, steps + 1):
        grads = [draw.normal(b.n, b.k) for b in budgets]
        step(m, grads, budgets)
        for w, g, (avg, sq), b in zip(expected, grads, moments, budgets, strict=True):
            reference.adamw_project_(
                *(w, g.double(), avg, sq, t, b.keep, b.floor, b.axis),
                **{"lr": LR, "grad_scale": SCALE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY},
            )
        tolerance = 1e-13 if dtype == torch.float64 else 2e-6
        for i, (avg, sq) in enumerate(moments):
            assert torch.equal(m.weights[i] != 0, expected[i] != 0), (t, budgets[i])
            for actual, e in ((m.weights[i], expected[i]), (m.exp_avgs[i], avg), (m.exp_avg_sqs[i], sq)):
                torch.testing.assert_close(actual.double(), e, rtol=tolerance, atol=tolerance)
            assert_pattern_of(m.weights[i], m.patterns[i])


@both_dtypes
def test_every_rule(dtype: torch.dtype, backend: str) -> None:
    check_steps(BUDGETS, dtype, 3, torch.int32)


@both_dtypes
def test_many_matrices(dtype: torch.dtype, backend: str) -> None:
    check_steps(MANY, dtype, 2, torch.int32)


def test_wide_indices(backend: str) -> None:
    check_steps(BUDGETS, torch.float32, 2, torch.int64)


@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (0, 3), (1, 5000), (5000, 1), (130, 517)], ids=str)
def test_every_shape(shape: tuple[int, int], backend: str) -> None:
    n, k = shape
    check_steps((Budget(n, k, n * k // 3), Budget(n, k, n * k), Budget(n, k, 0)), torch.float32, 2, torch.int32)


def test_beta2_near_one_keeps_its_digits(backend: str) -> None:
    budgets = (Budget(33, 70, 100),)
    draw = Draw(torch.float32)
    m, grad = Matrices.draw(budgets, draw), draw.normal(33, 70)
    step(m, [grad], budgets, betas=(0.9, 0.9999))  # in float32, 1 - 0.9999 has lost three of its digits
    expected = (1 - 0.9999) * (grad.double() * SCALE) ** 2
    torch.testing.assert_close(m.exp_avg_sqs[0].double(), expected, rtol=1e-6, atol=0)


def test_strided_gradients(backend: str) -> None:
    budgets = (Budget(33, 70, 100),)
    grad = Draw(torch.float32).normal(70, 33)
    results = []
    for g in (grad.T, grad.T.contiguous()):
        m = Matrices.draw(budgets, Draw(torch.float32))
        step(m, [g], budgets)
        results.append(m.weights[0])
    assert torch.equal(*results)


def test_nan_leaves_a_matrix_on_the_cpu_and_names_it(isa: str) -> None:
    budgets = (Budget(5, 7, 9), Budget(6, 8, 9), Budget(5, 7, 9))
    m = Matrices.draw(budgets, Draw(torch.float32))
    grads = [torch.ones_like(w) for w in m.weights]
    grads[1][2, 3] = torch.nan
    with pytest.raises(RuntimeError, match=r"adamw_project_: weights\[1\] must not contain NaN, found one at \[2, 3\]"):
        step(m, grads, budgets)
    assert (m.weights[1] != 0).sum() == 48
    assert (m.patterns[1].col_indices == -1).all()


def test_nan_on_a_gpu_is_reported_and_stays_visible(gpu_backend: str) -> None:
    budgets = (Budget(5, 7, 9), Budget(6, 8, 9, floor=1, axis=0))
    m = Matrices.draw(budgets, Draw(torch.float32))
    grads = [torch.ones_like(w) for w in m.weights]
    grads[1][2, 3] = torch.nan
    step(m, grads, budgets)
    assert m.weights[1].isnan().nonzero().tolist() == [[2, 3]]
    for w, pattern in zip(m.weights, m.patterns, strict=True):
        assert (w != 0).sum() == 9
        assert_pattern_of(w.nan_to_num(1), pattern)
    if gpu_backend == "cuda":
        with pytest.raises(RuntimeError, match="adamw_project_: weight must not contain NaN, .* flat index 19"):
            check_status()
    check_status()


def test_autograd_sees_the_change(backend: str) -> None:
    budgets = (Budget(5, 7, 9),)
    m = Matrices.draw(budgets, Draw(torch.float32))
    w = m.weights[0].requires_grad_()
    loss = (w * w).sum()
    step(m, [torch.ones(5, 7)], budgets)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
