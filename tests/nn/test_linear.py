"""``SparseLinear``, ``SparseEmbedding`` and ``AbsTopK`` as drop-ins for the layers of ``torch.nn``."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.nn import AbsTopK, SparseEmbedding, SparseLinear, SparseWeight

N, K = 12, 10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def keep_largest(dense: Tensor, nnz: int) -> Tensor:
    """True at the ``nnz`` largest magnitudes of a matrix without ties."""
    return dense.abs() >= dense.abs().flatten().sort(descending=True).values[nnz - 1]


@torch.no_grad()
def masked_(layer: nn.Linear | nn.Embedding, nnz: int) -> Tensor:
    """Zero all but the largest weights of a dense layer; returns where they are."""
    mask = keep_largest(layer.weight, nnz)
    layer.weight.mul_(mask)
    return mask


# ---- SparseLinear: construction


@pytest.mark.parametrize(("given", "nnz"), [({"nnz": 17}, 17), ({"density": 0.26}, 31), ({"density": 1.0}, 120)])
def test_nnz_is_exact(given: dict[str, Any], nnz: int) -> None:
    layer = SparseLinear(K, N, **given)
    assert (layer.weight.nnz, layer.weight.shape) == (nnz, (N, K))
    assert layer.weight.values.shape == (nnz,)
    layer.weight.csr.validate()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of nnz and density, got nnz=None, density=None"),
        ({"nnz": 3, "density": 0.5}, "exactly one of nnz and density, got nnz=3, density=0.5"),
        ({"density": 1.1}, "density must be between 0 and 1, got 1.1"),
        ({"density": -0.1}, "density must be between 0 and 1, got -0.1"),
        ({"nnz": 121}, r"nnz must be between 0 and 120 for shape \(12, 10\), got 121"),
        ({"nnz": -1}, "nnz must be between 0 and 120"),
    ],
)
def test_bad_sizes_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseLinear(K, N, **given)
    with pytest.raises(ValueError, match=message):
        SparseEmbedding(N, K, **given)
    with pytest.raises(ValueError, match=message):
        SparseLinear.from_linear(nn.Linear(K, N), **given)


def test_a_seed_decides_the_layer() -> None:
    def state(seed: int) -> list[list[float]]:
        torch.manual_seed(seed)
        return [t.tolist() for t in SparseLinear(K, N, density=0.3).state_dict().values()]

    assert state(3) == state(3)
    assert all(a != b for a, b in zip(state(3), state(4), strict=True))


def test_initial_values_follow_the_fan_in() -> None:
    layer = SparseLinear(400, 100, nnz=2500)  # 25 inputs per row, so a bound of 1/5
    for tensor in (layer.weight.values, layer.bias):
        assert tensor.abs().max() <= 0.2
        assert tensor.abs().max() > 0.19
        assert abs(tensor.mean()) < 0.04


def test_dtype_and_device() -> None:
    layer = SparseLinear(K, N, density=0.3, dtype=torch.float64, device="cpu")
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer(torch.ones(2, K, dtype=torch.float64)).dtype == torch.float64
    assert {t.device.type for t in SparseLinear(K, N, density=0.3, device="meta").state_dict().values()} == {"meta"}
    embedding = SparseEmbedding(N, K, density=0.3, dtype=torch.float64, device="cpu")
    assert embedding(torch.tensor([1])).dtype == torch.float64


def test_without_bias() -> None:
    layer = SparseLinear(K, N, bias=False, density=0.3)
    assert layer.bias is None
    assert set(layer.state_dict()) == {"weight.values", "weight.crow_indices", "weight.col_indices"}
    assert torch.equal(layer(torch.zeros(2, K)), torch.zeros(2, N))
    assert layer.to_linear().bias is None
    assert repr(layer).splitlines()[1].strip() == "in_features=10, out_features=12, bias=False"


# ---- SparseLinear: a masked nn.Linear


@pytest.mark.parametrize("master", [False, True], ids=["values", "master"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_from_linear_is_a_masked_linear(bias: bool, master: bool) -> None:
    dense = nn.Linear(K, N, bias=bias, dtype=torch.float64)
    layer = SparseLinear.from_linear(dense, nnz=25)
    if master:
        layer.weight.to_master_()
    mask = masked_(dense, 25)
    x, dy = randn(2, 3, K), randn(2, 3, N, seed=1)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(ours).backward(dy)
    dense(theirs).backward(dy)
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(ours.grad, theirs.grad)
    expected = dense.weight.grad if master else dense.weight.grad[mask]
    torch.testing.assert_close(layer.weight.parameter.grad, expected)
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_from_linear_leaves_the_dense_layer_alone() -> None:
    dense = nn.Linear(K, N)
    before = copy.deepcopy(dense.state_dict())
    layer = SparseLinear.from_linear(dense, density=0.2)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert all(torch.equal(t, before[name]) for name, t in dense.state_dict().items())


def test_from_linear_keeps_frozen_what_is_frozen() -> None:
    dense = nn.Linear(K, N)
    dense.weight.requires_grad_(False)
    layer = SparseLinear.from_linear(dense, density=0.2)
    assert {name: p.requires_grad for name, p in layer.named_parameters()} == {
        "weight.values": False,
        "bias": True,
    }
    dense.requires_grad_(False)
    assert not any(p.requires_grad for p in SparseLinear.from_linear(dense, density=0.2).parameters())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_to_linear_round_trip(bias: bool) -> None:
    layer = SparseLinear(K, N, bias=bias, nnz=25, dtype=torch.float64)
    dense = layer.to_linear()
    assert type(dense) is nn.Linear
    assert int(dense.weight.count_nonzero()) == 25
    torch.testing.assert_close(dense(randn(5, K)), layer(randn(5, K)))
    again = SparseLinear.from_linear(dense, nnz=25)
    assert all(torch.equal(t, layer.state_dict()[name]) for name, t in again.state_dict().items())


def test_explain() -> None:
    layer = SparseLinear(K, N, nnz=60)
    what = "12, 10, nnz=60, density=50.000%, form=values"
    assert str(layer.explain()) == f"csr: {what}: only the nonzeros are stored"
    layer.weight.to_master_()
    what = "12 x 10, 60 nonzeros (50.00%), float32, cpu"
    assert str(layer.explain()) == f"dense: {what}: denser than the break-even of 30%"
    layer.weight.budget = 36
    layer.weight.project_()
    what = "12 x 10, 36 nonzeros (30.00%), float32, cpu"
    assert str(layer.explain()) == f"csr: {what}: at or below the break-even of 30%"


# ---- training with ordinary optimizers


@pytest.mark.parametrize(
    ("kind", "settings"), [(torch.optim.AdamW, {"lr": 0.05}), (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9})]
)
def test_torch_optimizers_train_it(kind: type[torch.optim.Optimizer], settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    layer = SparseLinear(K, N, nnz=60)
    pattern = layer.weight.pattern
    x = torch.randn(64, K)
    target = F.linear(x, torch.randn(N, K))
    optim = kind(layer.parameters(), **settings)
    losses = []
    for _ in range(30):
        optim.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optim.step()
        losses.append(loss.item())
    best = _least_squares_loss(x, target, layer.weight)
    assert losses[-1] - best < 0.2 * (losses[0] - best)
    assert (layer.weight.nnz, layer.weight.pattern.perm) == (60, pattern.perm)
    assert torch.equal(layer.weight.col_indices, pattern.col_indices)


def _least_squares_loss(x: Tensor, target: Tensor, weight: SparseWeight) -> float:
    """The best that any weight of this pattern, with a bias, can do."""
    residual = 0.0
    for n in range(N):
        columns = weight.col_indices[weight.crow_indices[n] : weight.crow_indices[n + 1]].long()
        inputs = torch.cat([x[:, columns], torch.ones(len(x), 1)], dim=1)
        solution = torch.linalg.lstsq(inputs, target[:, n : n + 1]).solution
        residual += float((inputs @ solution - target[:, n : n + 1]).square().sum())
    return residual / target.numel()


# ---- SparseEmbedding


def test_embedding_is_a_masked_embedding() -> None:
    dense = nn.Embedding(N, K, dtype=torch.float64)
    layer = SparseEmbedding.from_embedding(dense, nnz=25)
    mask = masked_(dense, 25)
    ids, dy = torch.tensor([[3, 3, 0], [11, 7, 3]]), randn(2, 3, K)
    layer(ids).backward(dy)
    dense(ids).backward(dy)
    assert layer.weight.nnz == 25
    assert torch.equal(layer(ids), dense(ids))
    torch.testing.assert_close(layer.weight.values.grad, dense.weight.grad[mask])
    assert repr(layer).splitlines()[1].strip() == "12, 10"


def test_embedding_refuses_unknown_ids() -> None:
    for bad in (-1, N):
        with pytest.raises(RuntimeError, match="ids"):
            SparseEmbedding(N, K, density=0.5)(torch.tensor([0, bad]))


def test_embedding_keeps_frozen_what_is_frozen() -> None:
    dense = nn.Embedding(N, K).requires_grad_(False)
    assert not SparseEmbedding.from_embedding(dense, density=0.5).weight.values.requires_grad


# ---- AbsTopK


def test_abs_topk_keeps_the_largest_magnitudes() -> None:
    x = torch.tensor([[1.0, -3, 2, 0], [-1, -2, -3, -4]], requires_grad=True)
    y = AbsTopK(2)(x)
    assert y.tolist() == [[0, -3, 2, 0], [0, 0, -3, -4]]
    y.backward(torch.ones(2, 4))
    assert x.grad.tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_abs_topk_arguments() -> None:
    assert repr(AbsTopK(3)) == "AbsTopK(k=3)"
    assert AbsTopK(0)(torch.ones(1, 2)).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="k must not be negative, got -1"):
        AbsTopK(-1)
    with pytest.raises(RuntimeError, match="k"):
        AbsTopK(5)(torch.ones(2, 4))
