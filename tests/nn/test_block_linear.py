"""``BlockSparseLinear`` and the weight it holds."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparsekern as sk
from sparsekern.formats import block_norms
from sparsekern.nn import BlockSparseLinear, BlockSparseWeight, SparseEmbedding, SparseLinear


def test_from_linear_keeps_the_largest_blocks() -> None:
    linear = nn.Linear(40, 70)
    layer = BlockSparseLinear.from_linear(linear, (16, 32), blocks=4)
    norms = block_norms(linear.weight.detach(), (16, 32))
    kept = block_norms(layer.weight.to_dense().detach(), (16, 32)) > 0
    assert int(kept.sum()) == 4
    assert norms[kept].min() > norms[~kept].max()
    x = torch.randn(2, 3, 40)
    torch.testing.assert_close(layer(x), layer.to_linear()(x))
    assert layer.weight.entries == 4 * 16 * 32


def test_full_layer_is_the_dense_one() -> None:
    linear = nn.Linear(40, 70)
    layer = BlockSparseLinear.from_linear(linear, 16, density=1.0)
    x, expected = torch.randn(5, 40, requires_grad=True), torch.randn(5, 40)
    expected = x.detach().clone().requires_grad_()
    y, of_dense = layer(x), linear(expected)
    torch.testing.assert_close(y, of_dense)
    cotangent = torch.randn(5, 70)
    y.backward(cotangent)
    of_dense.backward(cotangent)
    torch.testing.assert_close(x.grad, expected.grad)
    torch.testing.assert_close(layer.bias.grad, linear.bias.grad)
    torch.testing.assert_close(layer.weight.bsr.with_values(layer.weight.values.grad).to_dense(), linear.weight.grad)


def test_any_optimizer_trains_it() -> None:
    torch.manual_seed(0)
    layer, target = BlockSparseLinear(50, 30, 16, density=0.6), torch.randn(64, 30)
    x = torch.randn(64, 50)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_state_follows_the_checkpoint(tmp_path: Path) -> None:
    saved, layer = BlockSparseLinear(50, 30, 16, blocks=5), BlockSparseLinear(50, 30, 16, blocks=2)
    save_file(saved.state_dict(), tmp_path / "layer.safetensors")
    layer.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(layer.weight.to_dense(), saved.weight.to_dense())
    with pytest.raises(RuntimeError, match=r"blocks must have shape \(32, 32\), got \(16, 16\)"):
        BlockSparseLinear(50, 30, 32, blocks=1).load_state_dict(saved.state_dict())


def test_forms_hold_the_same_matrix() -> None:
    weight = BlockSparseWeight.from_master(torch.randn(40, 50), 16)
    weight.budget = 5
    weight.project_()
    dense = weight.to_dense().detach()
    assert int((block_norms(dense, (16, 16)) > 0).sum()) == 5 == weight.nnz
    x = torch.randn(3, 50)
    for change in (weight.to_active_, weight.to_values_, weight.to_master_):
        change()
        assert torch.equal(weight.to_dense(), dense)
        torch.testing.assert_close(weight.linear(x), x @ dense.T)
        assert weight.parameter.requires_grad
    assert torch.equal(copy.deepcopy(weight).to_dense(), dense)


def test_floors_count_blocks() -> None:
    master = torch.randn(64, 64)
    master[16:32] *= 1e-3
    weight = BlockSparseWeight.from_master(master, 16, floor=1, axis=0)
    weight.budget = 5
    weight.project_()
    assert weight.crow_indices.diff().tolist()[1] == 1
    assert weight.nnz == 5


def test_sides_without_kernels_stay_in_master_form() -> None:
    weight = BlockSparseWeight.from_master(torch.randn(20, 22), 4)
    weight.budget = 3
    weight.project_()
    assert int((weight.master != 0).sum()) == 48
    with pytest.raises(ValueError, match="block must have sides among 16, 32, 64, 128, got"):
        weight.to_active_()


def test_explain_names_the_kernel() -> None:
    layer = BlockSparseLinear(64, 64, 32, density=0.5)
    assert layer.explain().kernel == "bsr"
    layer.weight.to_master_()
    assert layer.explain().kernel == "dense"


def test_sparsify_with_blocks() -> None:
    model = nn.Sequential(nn.Embedding(50, 48), nn.Linear(48, 96), nn.Linear(96, 48), nn.Linear(48, 50, bias=False))
    model[3].weight = model[0].weight
    sk.sparsify_(model, density=0.5, block=16)
    assert [type(layer) for layer in model] == [SparseEmbedding, BlockSparseLinear, BlockSparseLinear, SparseLinear]
    assert model[3].weight is model[0].weight
    assert model[1].weight.density == 0.5
    assert model(torch.arange(50)).shape == (50, 50)


def test_autocast_and_bfloat16() -> None:
    layer, x = BlockSparseLinear(64, 48, 16, density=0.5), torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.02, rtol=0.02)


def test_compiles_as_one_graph() -> None:
    layer, x = BlockSparseLinear(64, 48, 16, density=0.5), torch.randn(5, 64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()


def test_entries_are_those_inside_of_the_matrix() -> None:
    assert BlockSparseLinear(50, 30, 32, density=1.0).weight.entries == 50 * 30
    assert BlockSparseLinear(64, 32, 32, density=0.5).weight.entries == 32 * 32
    weight = BlockSparseLinear(50, 30, 32, density=1.0).weight
    saved = {name: torch.full_like(t, 7) if name == "values" else t for name, t in weight.state_dict().items()}
    weight.load_state_dict(saved)
    assert float(weight.values.sum()) == 7 * 50 * 30
    assert BlockSparseWeight.from_master(torch.randn(0, 40), 16).project_() is None


def test_there_is_no_csr() -> None:
    with pytest.raises(TypeError, match="a weight of blocks has no csr: see bsr"):
        print(BlockSparseLinear(16, 16, 16, density=1.0).weight.csr)
