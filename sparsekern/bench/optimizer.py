"""Projection and the optimizer's step under a benchmark, on the matrices of a whole GPT."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..formats import Pattern
from ..ops import adamw_project_, check_status, reference
from .masked_dense import project_
from .measure import COPY, Case, Problem, assert_close, copy_of, implementations

LR, BETAS, EPS, DECAY, STEP = 1e-2, (0.9, 0.95), 0.1, 0.1, 10
VOCAB, CONTEXT = 2048, 256


def build_topk_project(case: Case, device: torch.device) -> Problem:
    """Keep the largest magnitudes of an (N, K) matrix, in place."""
    original = torch.randn(case.n, case.k, device=device)
    weight = original.clone()
    k = int(case.density * original.numel())

    def kth_value() -> None:
        magnitude = weight.abs()
        weight.mul_(magnitude >= magnitude.flatten().kthvalue(magnitude.numel() - k + 1).values)

    contenders: dict[str, Callable[[], Any]] = {COPY: copy_of(2 * 4 * original.numel(), device)}
    contenders["torch.topk"] = partial(in_place, partial(project_, weight, k, 0, None))
    contenders["torch.kthvalue"] = partial(in_place, kth_value)
    for name, ops in implementations(device).items():
        contenders[name] = partial(in_place, partial(ops["topk_project_"], weight, k, 0, 0))

    least = original.abs().flatten().sort(descending=True).values[k - 1]

    def check(_: object) -> None:
        kept = weight != 0
        assert torch.equal(weight, torch.where(kept, original, 0)), "an entry was changed"
        assert (kept | (original.abs() <= least)).all(), "not the largest"
        assert k <= int(kept.sum()) <= int((original.abs() >= least).sum()), "not as many as asked for"

    return Problem(contenders, check, baseline="torch.topk", prepare=lambda: weight.copy_(original))


def in_place(run: Callable[[], object]) -> int:
    """A result to check, but none to overwrite."""
    run()
    return 0


def gpt_shapes(d_model: int, layers: int) -> list[tuple[int, int]]:
    """The sparse matrices of a GPT: four per layer, two embeddings, the unembedding."""
    d = d_model
    return [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)] * layers + [(VOCAB, d), (CONTEXT, d), (VOCAB, d)]


class Matrices:
    """Weights at a density, with gradients and moments, as in the middle of a run."""

    def __init__(self, shapes: list[tuple[int, int]], density: float, device: torch.device) -> None:
        def normal() -> list[Tensor]:
            return [torch.randn(shape, device=device) for shape in shapes]

        self.weights, self.grads, self.exp_avgs = normal(), normal(), normal()
        self.exp_avg_sqs = [avg.square() + 0.1 for avg in self.exp_avgs]
        self.steps = [torch.full((), float(STEP), device=device) for _ in shapes]
        self.kept = [int(density * n * k) for n, k in shapes]
        self.patterns = []
        for weight, k in zip(self.weights, self.kept, strict=True):
            project_(weight, k, 0, None)
            lengths = (weight.shape[0] + 1, k, weight.shape[1] + 1, k, k)
            crow, col, ccol, row, perm = (torch.zeros(n, dtype=torch.int32, device=device) for n in lengths)
            self.patterns.append(Pattern(crow, col, ccol, row, perm, (weight.shape[0], weight.shape[1])))
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


def build_adamw_project(case: Case, device: torch.device) -> Problem:
    """Adam, projection and new patterns of all matrices of a GPT, against torch's fused AdamW alone."""
    matrices = Matrices(gpt_shapes(case.n, case.k), case.density, device)
    count = sum(weight.numel() for weight in matrices.weights)
    contenders: dict[str, Callable[[], Any]] = {COPY: copy_of(7 * 4 * count, device)}  # reads 4 numbers, writes 3
    contenders["torch fused AdamW"] = matrices.torch_adamw
    contenders["torch fused AdamW, topk"] = partial(in_place, matrices.torch_adamw_and_topk)
    (ours,) = list(implementations(device))[:1]
    contenders[ours] = matrices.adamw_project

    def check(result: object) -> None:
        for weight, k in zip(matrices.weights, matrices.kept, strict=True):
            assert int(weight.count_nonzero()) == k, "not as many nonzeros as asked for"
        if result is matrices.patterns:
            check_one_step([(257, 130), (64, 500)], case.density, device)
            check_status()

    return Problem(contenders, check, baseline="torch fused AdamW")


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
