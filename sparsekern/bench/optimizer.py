"""Projection and the optimizer's step under a benchmark, on the matrices of a whole GPT."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..formats import Pattern
from ..ops import ActiveMatrix, adamw_project_, adamw_select_, check_status, reference
from .masked_dense import project_
from .measure import Case, Problem, Work, assert_close, implementations

LR, BETAS, EPS, DECAY, STEP = 1e-2, (0.9, 0.95), 0.1, 0.1, 10
CANDIDATE_BETA1, ACTIVE_PER_KEPT = 0.97, 2
VOCAB, CONTEXT = 2048, 256


def build_topk_project(case: Case, device: torch.device) -> Problem:
    """Keep the largest magnitudes of an (N, K) matrix, in place."""
    original = torch.randn(case.n, case.k, device=device)
    weight = original.clone()
    k = int(case.density * original.numel())

    def kth_value() -> None:
        magnitude = weight.abs()
        weight.mul_(magnitude >= magnitude.flatten().kthvalue(magnitude.numel() - k + 1).values)

    def sort() -> None:
        order = weight.abs().flatten().sort(descending=True).indices
        weight.view(-1)[order[k:]] = 0

    contenders: dict[str, Callable[[], Any]] = {
        "torch.topk": partial(in_place, partial(project_, weight, k, 0, None)),
        "torch.kthvalue": partial(in_place, kth_value),
        "torch.sort": partial(in_place, sort),
    }
    for name, ops in implementations(device).items():
        contenders[name] = partial(in_place, partial(ops["topk_project_"], weight, k, 0, 0))

    least = original.abs().flatten().sort(descending=True).values[k - 1]

    def check(_: object) -> None:
        kept = weight != 0
        assert torch.equal(weight, torch.where(kept, original, 0)), "an entry was changed"
        assert (kept | (original.abs() <= least)).all(), "not the largest"
        assert k <= int(kept.sum()) <= int((original.abs() >= least).sum()), "not as many as asked for"

    work = Work(2 * original.nbytes, in_place=True)
    return Problem(contenders, check, baseline="torch.topk", work=work, prepare=lambda: weight.copy_(original))


def in_place(run: Callable[[], object]) -> int:
    """A result to check, but none to overwrite."""
    run()
    return 0


def gpt_shapes(d_model: int, layers: int) -> list[tuple[int, int]]:
    """The sparse matrices of a GPT: four per layer, two embeddings, the unembedding."""
    d = d_model
    return [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)] * layers + [(VOCAB, d), (CONTEXT, d), (VOCAB, d)]


class AdamState:
    """Weights of which some are kept, with gradients and moments, as in the middle of a run."""

    def __init__(self, shapes: list[tuple[int, ...]], kept: list[int], device: torch.device) -> None:
        def normal() -> list[Tensor]:
            return [torch.randn(shape, device=device) for shape in shapes]

        self.weights, self.grads, self.exp_avgs = normal(), normal(), normal()
        self.exp_avg_sqs = [avg.square() + 0.1 for avg in self.exp_avgs]
        self.steps = [torch.full((), float(STEP), device=device) for _ in shapes]
        self.kept = kept
        for weight, k in zip(self.weights, kept, strict=True):
            project_(weight, k, 0, None)
        self.lr, self.grad_scale = (torch.full((), v, dtype=torch.float64, device=device) for v in (LR, 1.0))

    def torch_adamw(self) -> None:
        """torch's own fused kernel, without a projection: no result to check."""
        torch._fused_adamw_(
            self.weights,
            self.grads,
            self.exp_avgs,
            self.exp_avg_sqs,
            [],
            self.steps,
            lr=LR,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS,
            weight_decay=DECAY,
            amsgrad=False,
            maximize=False,
        )

    def torch_adamw_and_topk(self) -> None:
        self.torch_adamw()
        for weight, k in zip(self.weights, self.kept, strict=True):
            project_(weight, k, 0, None)


def blank_pattern(shape: tuple[int, int], k: int, device: torch.device) -> Pattern:
    lengths = (shape[0] + 1, k, shape[1] + 1, k, k)
    crow, col, ccol, row, perm = (torch.zeros(n, dtype=torch.int32, device=device) for n in lengths)
    return Pattern(crow, col, ccol, row, perm, shape)


def kept_of(shapes: list[tuple[int, int]], density: float) -> list[int]:
    return [int(density * n * k) for n, k in shapes]


class Matrices(AdamState):
    """Weights at a density, and patterns to write."""

    def __init__(self, shapes: list[tuple[int, int]], density: float, device: torch.device) -> None:
        super().__init__([*shapes], kept_of(shapes, density), device)
        self.patterns = [blank_pattern(shape, k, device) for shape, k in zip(shapes, self.kept, strict=True)]

    def adamw_project(self) -> list[Pattern]:
        """Ours; returns the new patterns."""
        adamw_project_(
            self.weights,
            self.grads,
            self.exp_avgs,
            self.exp_avg_sqs,
            self.steps,
            self.patterns,
            floors=[0] * len(self.weights),
            axes=[None] * len(self.weights),
            lr=self.lr,
            grad_scale=self.grad_scale,
            betas=BETAS,
            eps=EPS,
            weight_decay=DECAY,
        )
        return self.patterns


class ActiveMatrices(AdamState):
    """The same in sparse mode: twice as many active positions as are kept, some of which joined later."""

    def __init__(self, shapes: list[tuple[int, int]], density: float, device: torch.device, floor: int = 0) -> None:
        kept = kept_of(shapes, density)
        super().__init__([(ACTIVE_PER_KEPT * k,) for k in kept], kept, device)
        self.matrices = []
        for i, (n, k) in enumerate(shapes):
            weight = self.weights[i]
            positions = torch.randperm(n * k, device=device)[: weight.numel()].sort().values
            ends = torch.arange(n + 1, device=device) * k
            self.matrices.append(
                ActiveMatrix(
                    weight=weight,
                    grad=self.grads[i],
                    exp_avg=self.exp_avgs[i],
                    exp_avg_sq=self.exp_avg_sqs[i],
                    joined=torch.randint(STEP, weight.shape, device=device).float(),
                    step=self.steps[i],
                    in_support=weight != 0,
                    active_crow=torch.searchsorted(positions, ends).int(),
                    active_col=(positions % k).int(),
                    slots=torch.zeros(kept[i], dtype=torch.int32, device=device),
                    pattern=blank_pattern((n, k), kept[i], device),
                    floor=floor,
                    axis=i % 2,
                )
            )

    def adamw_select(self) -> list[ActiveMatrix]:
        """Ours; returns the matrices."""
        adamw_select_(
            self.matrices,
            lr=self.lr,
            grad_scale=self.grad_scale,
            betas=BETAS,
            candidate_beta1=CANDIDATE_BETA1,
            eps=EPS,
            weight_decay=DECAY,
        )
        return self.matrices


def build_adamw_project(case: Case, device: torch.device) -> Problem:
    """Adam, projection and new patterns of all matrices of a GPT, against torch's fused AdamW alone."""
    matrices = Matrices(gpt_shapes(case.n, case.k), case.density, device)
    count = sum(weight.numel() for weight in matrices.weights)
    contenders: dict[str, Callable[[], Any]] = {
        "torch fused AdamW": matrices.torch_adamw,
        "torch.topk after fused AdamW": partial(in_place, matrices.torch_adamw_and_topk),
    }
    (ours,) = list(implementations(device))[:1]
    contenders[ours] = matrices.adamw_project

    def check(result: object) -> None:
        for weight, k in zip(matrices.weights, matrices.kept, strict=True):
            assert int(weight.count_nonzero()) == k, "not as many nonzeros as asked for"
        if result is matrices.patterns:
            check_one_step([(257, 130), (64, 500)], case.density, device)
            check_status()

    work = Work(7 * 4 * count, in_place=True)  # reads 4 numbers, writes 3
    return Problem(contenders, check, baseline="torch fused AdamW", work=work)


def build_adamw_select(case: Case, device: torch.device) -> Problem:
    """The step of sparse mode on all matrices of a GPT, against torch's fused AdamW and topk on the same entries."""
    state = ActiveMatrices(gpt_shapes(case.n, case.k), case.density, device)
    moved = sum(34 * m.weight.numel() + 20 * m.slots.numel() for m in state.matrices)  # the numbers, then the pattern
    contenders: dict[str, Callable[[], Any]] = {
        "torch fused AdamW": state.torch_adamw,
        "torch.topk after fused AdamW": partial(in_place, state.torch_adamw_and_topk),
    }
    (ours,) = list(implementations(device))[:1]
    contenders[ours] = state.adamw_select

    def check(result: object) -> None:
        for m in state.matrices:
            assert int(m.weight.count_nonzero()) == m.slots.numel(), "not as many nonzeros as asked for"
        if result is state.matrices:
            check_one_selection([(257, 130), (64, 500)], case.density, device)
            check_status()

    return Problem(contenders, check, baseline="torch.topk", work=Work(moved, in_place=True))


def check_one_step(shapes: list[tuple[int, int]], density: float, device: torch.device) -> None:
    """A step of adamw_project_ on small matrices, against the reference in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # whether two magnitudes are too close to tell apart is then no matter of luck
        m = Matrices(shapes, max(density, 0.05), device)
    exact = [[t.double() for t in every] for every in (m.weights, m.grads, m.exp_avgs, m.exp_avg_sqs)]
    m.adamw_project()
    for i, (weight, grad, avg, sq) in enumerate(zip(*exact, strict=True)):
        reference.adamw_project_(
            *(weight, grad, avg, sq, STEP, m.kept[i], 0, None),
            lr=LR,
            grad_scale=1.0,
            betas=BETAS,
            eps=EPS,
            weight_decay=DECAY,
        )
        for actual, expected in ((m.weights[i], weight), (m.exp_avgs[i], avg), (m.exp_avg_sqs[i], sq)):
            assert_close(actual, expected)


def check_one_selection(shapes: list[tuple[int, int]], density: float, device: torch.device) -> None:
    """A step of adamw_select_ on small matrices with floors, against the reference in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = ActiveMatrices(shapes, max(density, 0.05), device, floor=2)
    trained = ("weight", "exp_avg", "exp_avg_sq")
    indices = ("step", "in_support", "active_crow", "active_col")
    exact = [
        replace(
            m,
            **{name: getattr(m, name).double().cpu() for name in (*trained, "grad", "joined")},
            **{name: getattr(m, name).cpu().clone() for name in indices},
        )
        for m in state.matrices
    ]
    state.adamw_select()
    for m, expected in zip(state.matrices, exact, strict=True):
        reference.adamw_select_(
            expected,
            lr=LR,
            grad_scale=1.0,
            betas=BETAS,
            candidate_beta1=CANDIDATE_BETA1,
            eps=EPS,
            weight_decay=DECAY,
        )
        for name in trained:
            assert_close(getattr(m, name).cpu(), getattr(expected, name))
        assert torch.equal(m.slots.cpu().long(), expected.in_support.nonzero().flatten()), "another support"
