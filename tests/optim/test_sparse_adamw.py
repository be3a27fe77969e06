"""``SparseAdamW``: the groups it takes, the order of its step, and its manners as a torch optimizer.

That it is the published rule over many steps is tested in ``test_exact.py``.
"""

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.models import GPT, GPTConfig
from sparsekern.nn import SparseEmbedding, SparseLinear, SparseWeight
from sparsekern.optim import SparseAdamW, param_groups

PLAIN = {"lr": 0.5, "eps": 0.0, "weight_decay": 0.0}  # without eps, the first steps have length lr


class Tied(nn.Module):
    """An embedding tied to a sparse output layer, with something dense between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = SparseEmbedding(20, 8, density=0.5)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = SparseLinear.from_weight(self.embed.weight)
        self.table = nn.Parameter(torch.randn(20, 20))

    def no_weight_decay(self) -> set[str]:
        return {"table"}

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.hidden(self.embed(ids)))) + self.table[ids]

    def loss(self, ids: Tensor) -> Tensor:
        return F.cross_entropy(self(ids), (ids + 1) % 20)


class OneWeight(nn.Module):
    """A 1 x 3 sparse weight, a dense matrix and a vector, with whatever gradients a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse = SparseWeight.from_master(torch.tensor([[4.0, -3, 1]]))
        self.matrix = nn.Parameter(torch.tensor([[2.0]]))
        self.vector = nn.Parameter(torch.tensor([2.0]))

    def set_grads(self, sparse: list[float] | None, matrix: float | None, vector: float | None) -> None:
        self.sparse.master.grad = None if sparse is None else torch.tensor([sparse])
        self.matrix.grad = None if matrix is None else torch.tensor([[matrix]])
        self.vector.grad = None if vector is None else torch.tensor([vector])


def tied(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return Tied()


def optimizer(model: nn.Module, **settings: Any) -> SparseAdamW:
    return SparseAdamW(param_groups(model), **{"lr": 0.05, **settings})


def batch(step: int) -> Tensor:
    return torch.randint(20, (16,), generator=torch.Generator().manual_seed(step))


def train(model: Tied, optim: SparseAdamW, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optim.zero_grad()
        loss = model.loss(batch(step))
        loss.backward()
        optim.step()
        losses.append(loss.item())
    return losses


def state(module: nn.Module) -> dict[str, list[Any]]:
    return {name: t.tolist() for name, t in module.state_dict().items()}


# ---- parameter groups


def test_groups_hold_every_parameter_once() -> None:
    model = tied()
    sparse, decayed, undecayed = param_groups(model)
    assert sparse["sparse_weights"] == {"embed.weight": model.embed.weight}
    assert [id(p) for p in sparse["params"]] == [id(model.embed.weight.values)]
    assert [id(p) for p in decayed["params"]] == [id(model.hidden.weight)]
    spared = {id(p) for p in (model.hidden.bias, model.norm.weight, model.norm.bias, model.table)}
    assert {id(p) for p in undecayed["params"]} == spared
    assert len(undecayed["params"]) == 4
    assert undecayed["weight_decay"] == 0
    assert "weight_decay" not in sparse | decayed


def test_groups_of_a_gpt() -> None:
    model = GPT(GPTConfig(block_size=8, vocab_size=20, n_layer=2, d_model=16))
    sparse, undecayed = param_groups(model)  # it has no decayed dense matrix
    assert len(sparse["params"]) == 2 * 4 + 3
    dense = {name for name, p in model.named_parameters() if id(p) in {id(p) for p in undecayed["params"]}}
    assert "bigram_table" in dense
    assert {name.rpartition(".")[2] for name in dense} == {"bigram_table", "bias", "weight"}
    assert len(dense) == 1 + 2 * 6 + 1  # the table; two gains and four biases per layer; the last gain
    assert len(list(model.parameters())) == len(sparse["params"]) + len(dense)


def test_a_model_without_sparse_weights_has_ordinary_groups() -> None:
    groups = param_groups(nn.Linear(3, 2))
    assert [set(group) for group in groups] == [{"params"}, {"params", "weight_decay"}]


def test_exact_mode_asks_for_the_master_form() -> None:
    model = tied()
    dense = model.embed.weight.to_dense().detach()
    optim = optimizer(model)
    assert model.embed.weight.form == "master"
    assert optim.param_groups[0]["params"][0] is model.embed.weight.master
    assert torch.equal(model.embed.weight.master, dense)
    assert optim.sparse_weights == [model.embed.weight]
    assert "sparse_weights" not in optim.state_dict()["param_groups"][0]


# ---- the step


def test_one_step_by_hand() -> None:
    model = OneWeight()
    model.sparse.budget = 2
    model.set_grads([1.0, -1.0, 1.0], 1.0, -1.0)
    optimizer(model, lr=0.5, eps=0.0, weight_decay=0.1).step()
    # Adam moves everything by lr; then the smallest goes; then what decays shrinks by 1 - lr * weight_decay.
    torch.testing.assert_close(model.sparse.master.data, torch.tensor([[3.5 * 0.95, -2.5 * 0.95, 0.0]]))
    torch.testing.assert_close(model.matrix.data, torch.tensor([[1.5 * 0.95]]))
    torch.testing.assert_close(model.vector.data, torch.tensor([2.5]))
    assert model.sparse.col_indices.tolist() == [0, 1]


def test_decay_follows_the_projection() -> None:
    model = OneWeight()
    model.sparse.budget = 1
    model.set_grads([1.0, 1.0, 1.0], None, None)
    optimizer(model, lr=0.25, eps=0.0, weight_decay=3.0).step()
    # 3.75 stays rather than -3.25; had decay come first, it would have been -1 (from -0.75) rather than 0.75 (from 1)
    assert model.sparse.master.tolist() == [[3.75 * 0.25, 0, 0]]


@pytest.mark.parametrize("eps", [0.01, 0.1, 2.0])
def test_eps_is_relative_to_the_gradient_rms(eps: float) -> None:
    for scale in (1.0, 1000.0):
        model = OneWeight()
        model.set_grads([3.0 * scale, 0.0, 0.0], 4.0 * scale, 0.0)
        optimizer(model, lr=0.5, eps=eps, weight_decay=0.0).step()
        unit = math.sqrt((9 + 16) / 5)
        moved = (4 - model.sparse.master[0, 0].item(), 2 - model.matrix.item())
        expected = [0.5 * g / (g + eps) for g in (3 / unit, 4 / unit)]
        assert moved == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("scale", "unit"), [(0.1, 1.0), (1000.0, 1000 * math.sqrt(25 / 5))])
def test_clipped_gradients_are_divided_only_where_they_are_large(scale: float, unit: float) -> None:
    model = OneWeight()
    model.set_grads([3.0 * scale, 0.0, 0.0], 4.0 * scale, 0.0)
    optimizer(model, lr=0.5, eps=0.5, weight_decay=0.0, gradients="clipped").step()
    moved = (4 - model.sparse.master[0, 0].item(), 2 - model.matrix.item())
    assert moved == pytest.approx([0.5 * g / (g + 0.5) for g in (3 * scale / unit, 4 * scale / unit)], rel=1e-4)


def test_gradient_rms_is_over_all_parameters() -> None:
    model = OneWeight()
    optim = optimizer(model)
    model.set_grads([3.0, 0.0, 4.0], None, 12.0)  # the missing one counts as zero: 13^2 over 5 numbers
    optim.step()
    assert optim.gradient_rms.item() == pytest.approx(13 / math.sqrt(5))
    assert model.vector.grad.item() == 12  # left as it was
    model.set_grads(None, None, None)
    optim.step()
    assert optim.gradient_rms.item() == 0


def test_nonzeros_are_the_budget_after_every_step() -> None:
    model = tied()
    optim = optimizer(model, lr=0.5)
    weight = model.embed.weight
    at_50 = set()
    for step, budget in enumerate([160, 100, 50, 50, 50, 50, 50, 20, 60]):
        weight.budget = budget
        train(model, optim, range(step, step + 1))
        assert weight.nnz == budget
        assert int(weight.master.count_nonzero()) <= budget
        assert torch.equal(weight.to_dense(), weight.master)
        if budget == 50:
            at_50.add(tuple(weight.col_indices.tolist()))
    assert len(at_50) > 1  # zero weights come back


def test_it_trains() -> None:
    model = tied()
    optim = optimizer(model, eps=0.1)
    model.embed.weight.budget = 40
    losses = train(model, optim, range(60))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert model.embed.weight.nnz == 40


def test_without_gradients_nothing_changes() -> None:
    model = tied()
    optim = optimizer(model, weight_decay=0.5)
    before = state(model)
    optim.step()
    assert state(model) == before
    assert not optim.state


def test_frozen_parameters_do_not_change() -> None:
    model = tied()
    model.hidden.weight.requires_grad_(False)
    model.embed.weight.parameter.requires_grad_(False)
    optim = optimizer(model, weight_decay=0.5)
    before = state(model)
    train(model, optim, range(2))
    after = state(model)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"hidden.bias", "norm.weight", "norm.bias", "table"}


def test_nan_stops_the_step() -> None:
    model = OneWeight()
    optim = optimizer(model, **PLAIN)
    model.set_grads([1.0, math.nan, 1.0], 1.0, 1.0)
    before = model.sparse.master.clone()
    with pytest.raises(RuntimeError, match="the gradient is not finite"):
        optim.step()
    assert torch.equal(model.sparse.master, before)


# ---- as a torch optimizer


def test_learning_rate_schedulers_steer_it() -> None:
    model = OneWeight()
    optim = optimizer(model, **PLAIN)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: [1.0, 0.5, 0.0, 0.25][step])
    positions = [2.0]
    for _ in range(4):
        model.set_grads(None, None, 1.0)  # a constant gradient moves by lr in every step
        optim.step()
        scheduler.step() if scheduler.last_epoch < 3 else None
        positions.append(model.vector.item())
    moved = [a - b for a, b in pairwise(positions)]
    assert moved == pytest.approx([0.5, 0.25, 0.0, 0.125], rel=1e-5)


def test_gradients_accumulate() -> None:
    whole, halves = tied(), tied()
    steps = [optimizer(model) for model in (whole, halves)]
    ids = batch(0)
    whole.loss(ids).backward()
    for half in ids.chunk(2):
        (halves.loss(half) / 2).backward()
    for optim in steps:
        optim.step()
    for name, t in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], t, msg=name)


def test_closure_is_called_with_gradients_on() -> None:
    once, twin = tied(), tied()
    optim = optimizer(once)

    def closure() -> Tensor:
        optim.zero_grad()
        loss = once.loss(batch(0))
        loss.backward()
        return loss

    loss = optim.step(closure)
    assert loss is not None
    assert [loss.item()] == train(twin, optimizer(twin), range(1))
    assert state(once) == state(twin)


def test_state_dict_round_trip() -> None:
    model = tied()
    optim = optimizer(model)
    model.embed.weight.budget = 40
    train(model, optim, range(3))
    saved = copy.deepcopy((model.state_dict(), optim.state_dict()))
    fresh = tied(seed=1)
    again = optimizer(fresh, lr=1.0)
    fresh.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert train(fresh, again, range(3, 6)) == train(model, optim, range(3, 6))
    assert state(fresh) == state(model)
    assert fresh.embed.weight.nnz == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "dense"}, "mode must be 'exact' or 'sparse', got 'dense'"),
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"lr": math.nan}, "lr must not be negative, got nan"),
        ({"betas": (0.9, 1.0)}, r"betas and candidate_beta1 must be in \[0, 1\), got \(0.9, 1.0\) and 0.97"),
        ({"betas": (-0.1, 0.9)}, "betas and candidate_beta1 must be in"),
        ({"eps": -0.1}, "eps, weight_decay and candidates must not be negative, got -0.1, 0.1 and 4.0"),
        ({"weight_decay": -1.0}, "eps, weight_decay and candidates must not be negative, got 0.1, -1.0 and 4.0"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    model = tied()
    with pytest.raises(ValueError, match=message):
        optimizer(model, **settings)
    assert model.embed.weight.form != "master"


def test_bare_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="param_groups"):
        SparseAdamW(tied().parameters(), lr=0.1)
