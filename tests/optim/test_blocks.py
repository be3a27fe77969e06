"""Exact and sparse mode on weights of blocks."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_exact import CONFIG, LR, STEPS, batches, schedule
from torch import Tensor

import sparsekern as sk
from sparsekern.formats import block_norms
from sparsekern.nn import BlockSparseWeight
from sparsekern.ops import ActiveMatrix, reference
from sparsekern.optim.block_step import adamw_select_blocks_
from sparsekern.optim.topology import over_entries
from sparsekern.train import set_budgets

BLOCKED = sk.models.GPTConfig(**{**vars(CONFIG), "d_model": 64, "n_layer": 1, "weight_blocks": "16", "afrac": None})
SPARSEST = 0.5  # so that every neuron's floor fits


def make_model(config: Mapping[str, Any] | None = None, **changes: Any) -> sk.models.GPT:
    torch.manual_seed(0)
    return sk.models.GPT(replace(BLOCKED, **(config or {})), floor=2, **changes).double()


def density_of(step: int) -> float:
    return max(SPARSEST, schedule(step)[0])


def train(
    model: sk.models.GPT, optimizer: sk.optim.SparseAdamW, steps: int, first: int = 0, density: float | None = None
) -> list[float]:
    """Losses of the steps from ``first``, at a fixed density or on the schedule."""
    losses = []
    for step, (ids, targets) in list(enumerate(batches(steps)))[first:]:
        set_budgets(model.matrices() + model.embeddings(), density or density_of(step))
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)[1]
        loss = model.loss(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def optimizer_of(model: torch.nn.Module, mode: str, **changes: Any) -> sk.optim.SparseAdamW:
    return sk.optim.SparseAdamW(sk.optim.param_groups(model), lr=LR, mode=mode, **changes)


def train_dense(model: sk.models.GPT, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """The published rule in plain PyTorch, where the norms of blocks are compared instead of magnitudes; losses, and
    the weights at the end."""
    names = {id(w.master): n for n, w in model.named_modules() if isinstance(w, sk.nn.SparseWeight)}
    weights = {n: w for n, w in model.named_modules() if isinstance(w, sk.nn.SparseWeight)}
    parameters = dict(model.named_parameters())
    adam = torch.optim.Adam(parameters.values(), lr=LR, betas=(0.9, 0.95), eps=0.1)
    losses = []
    for step, (ids, targets) in enumerate(batches(steps)):
        lr = schedule(step)[1]
        adam.param_groups[0]["lr"] = lr
        loss = model.loss(ids, targets)
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            square = sum(float(p.grad.square().sum()) for p in parameters.values())
            rms = math.sqrt(square / sum(p.numel() for p in parameters.values()))
            for p in parameters.values():
                p.grad /= rms + 1e-5
            adam.step()
            for name, p in parameters.items():
                if id(p) in names:
                    weight = weights[names[id(p)]]
                    keep = int(density_of(step) * weight.positions)
                    if weight.block is None:
                        reference.topk_project_(p, keep)
                    else:
                        norms = block_norms(p, weight.block)
                        kept = reference.topk_project_(norms.clone(), keep, weight.floor, weight.axis) != 0
                        p *= kept.repeat_interleave(16, 0).repeat_interleave(16, 1)[: p.shape[0], : p.shape[1]]
                if p.dim() > 1 and name != "bigram_table":
                    p *= 1 - lr * 0.1
        losses.append(loss.item())
    return losses, {name: p.detach().clone() for name, p in parameters.items()}


def test_exact_mode_equals_plain_dense_training() -> None:
    expected, weights = train_dense(make_model(), STEPS)
    model = make_model()
    losses = train(model, optimizer_of(model, "exact"), STEPS)
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-9
    assert losses[-1] < losses[0] - 0.5
    for name, p in model.named_parameters():
        assert torch.equal(p != 0, weights[name] != 0), name


@pytest.mark.parametrize("side", [16, 64])
def test_sparse_mode_over_everything_equals_exact_mode(side: int) -> None:
    """Of 64, blocks reach over the edges of the matrices of a model 80 wide."""
    config = {"d_model": 80, "weight_blocks": str(side)}
    exact, sparse = make_model(config), make_model(config)
    losses = train(exact, optimizer_of(exact, "exact"), STEPS)
    everything = optimizer_of(sparse, "sparse", candidates=math.inf, candidate_beta1=0.9, refresh_every=1)
    assert all(w.form == "active" for w in sparse.matrices())
    restricted = train(sparse, everything, STEPS)
    assert max(abs(a - b) for a, b in zip(losses, restricted, strict=True)) < 1e-9
    for a, b in zip(exact.matrices(), sparse.matrices(), strict=True):
        assert torch.equal(a.col_indices, b.col_indices)
        torch.testing.assert_close(a.to_dense(), b.to_dense())


@pytest.mark.parametrize("split", [0, 3, 8])
def test_sparse_mode_resumes_bit_for_bit(split: int) -> None:
    def make() -> tuple[sk.models.GPT, sk.optim.SparseAdamW]:
        model = make_model(density=SPARSEST)
        return model, optimizer_of(model, "sparse", candidates=0.5, refresh_every=4)

    model, optimizer = make()
    train(model, optimizer, split, density=SPARSEST)
    resumed, other = make()
    resumed.load_state_dict(model.state_dict())
    other = optimizer_of(resumed, "sparse", candidates=0.5, refresh_every=4)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(resumed, other, 12, split, SPARSEST) == train(model, optimizer, 12, split, SPARSEST)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_counts_and_floors_hold() -> None:
    model = make_model(density=SPARSEST)
    optimizer = optimizer_of(model, "sparse", candidates=0.5, refresh_every=3)
    losses = train(model, optimizer, 20, density=SPARSEST)
    assert losses[-1] < losses[0] - 0.3
    for weight in model.matrices():
        assert isinstance(weight, BlockSparseWeight)
        assert weight.nnz == int(SPARSEST * weight.positions)
        assert weight.floor == 1  # a block has 16 nonzeros of a neuron
        counts = torch.bincount(weight.col_indices, minlength=weight.grid[1])
        assert (weight.crow_indices.diff() if weight.axis == 0 else counts).min() >= 1
        outside = weight.active.detach()[~weight.in_support]
        assert len(outside) > 0
        assert not outside.any()
        assert weight.active.grad is None or weight.active.grad.shape == weight.active.shape


def test_to_sparse_keeps_the_weights() -> None:
    model = make_model()
    optimizer = optimizer_of(model, "exact")
    train(model, optimizer, STEPS // 2)
    before = [w.to_dense().detach() for w in model.matrices()]
    optimizer.to_sparse_()
    for weight, dense in zip(model.matrices(), before, strict=True):
        assert weight.form == "active"
        assert torch.equal(weight.to_dense(), dense)
    losses = train(model, optimizer, STEPS, STEPS // 2)
    assert losses[-1] < losses[0]


def test_what_lies_over_the_edge_does_not_count() -> None:
    values = torch.full((2, 16, 16), 0.5)
    values[1] = 5.0
    values[1, :, 0] = 0.0  # all that is inside of the matrix
    weight = BlockSparseWeight(sk.BSR.from_parts(torch.tensor([0, 2]), torch.tensor([0, 1]), values, (16, 17)))
    model = torch.nn.ModuleDict({"weight": weight})
    optimizer = optimizer_of(model, "sparse")
    weight.budget = 1
    weight.linear(torch.ones(3, 17)).sum().backward()
    optimizer.step()
    assert weight.col_indices.tolist() == [0]


def test_a_side_without_kernels_is_refused_before_anything_changes() -> None:
    weights = [BlockSparseWeight.from_master(torch.randn(32, 32), side) for side in (16, 4)]
    model = torch.nn.ModuleList(weights)
    with pytest.raises(ValueError, match="block must have sides among"):
        optimizer_of(model, "sparse")
    optimizer = optimizer_of(model, "exact")
    with pytest.raises(ValueError, match="block must have sides among"):
        optimizer.to_sparse_()
    assert [w.form for w in weights] == ["master", "master"]


def test_blocks_of_equal_entries_step_like_single_ones() -> None:
    """Candidates and positions of every age among them: the norm of such a block is 16 times the magnitude of one."""
    generator = torch.Generator().manual_seed(0)
    csr = sk.CSR.random(9, 12, nnz=60, generator=generator, dtype=torch.float64)
    in_support = torch.arange(60) % 3 != 1

    def matrix(block: tuple[int, ...]) -> ActiveMatrix:
        numbers = torch.randn(4, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        weight, grad, avg, square = (t.view(-1, *[1] * len(block)).repeat(1, *block) for t in numbers)
        return ActiveMatrix(
            weight=weight * over_entries(in_support, weight),
            grad=grad,
            exp_avg=avg,
            exp_avg_sq=square.square(),
            joined=(torch.arange(60) % 4).double(),
            step=torch.tensor(6.0),
            in_support=in_support.clone(),
            active_crow=csr.crow_indices,
            active_col=csr.col_indices,
            slots=torch.empty(40, dtype=torch.int32),
            pattern=sk.CSR.random(9, 12, nnz=40, generator=generator).pattern,
            floor=2,
            axis=0,
        )

    single, blocks = matrix(()), matrix((16, 16))
    lr, scale = torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    rule: dict[str, Any] = {"betas": (0.9, 0.95), "candidate_beta1": 0.97, "eps": 0.1, "weight_decay": 0.1}
    sk.ops.adamw_select_([single], lr=lr, grad_scale=scale, **rule)
    adamw_select_blocks_(blocks, lr=lr, grad_scale=scale, **rule)
    assert torch.equal(blocks.in_support, single.in_support)
    assert not torch.equal(blocks.in_support, in_support)
    assert torch.equal(blocks.slots, single.slots)
    assert all(map(torch.equal, blocks.pattern.tensors, single.pattern.tensors))
    for name in ("weight", "exp_avg", "exp_avg_sq"):
        expected = getattr(single, name).view(-1, 1, 1).expand(-1, 16, 16)
        torch.testing.assert_close(getattr(blocks, name), expected, rtol=1e-12, atol=1e-12)
