"""``report``: what it says of each layer."""

import pytest
import torch
from torch import nn

from sparsekern import report, sparsify_
from sparsekern.nn import BlockSparseLinear, SparseEmbedding, SparseLinear


def a_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "table": SparseEmbedding(50, 20, nnz=100),
            "thin": SparseLinear(20, 30, nnz=60),
            "blocks": BlockSparseLinear(64, 32, 16, blocks=3),
            "norm": nn.LayerNorm(20),
        }
    )
    model["head"] = SparseLinear.from_weight(model["table"].weight)
    model["again"] = model["thin"]
    return model


def test_every_layer_is_reported_once() -> None:
    found = report(a_model())
    about = {layer.name: (layer.kind, layer.shape, layer.nnz, layer.kernel) for layer in found.layers}
    assert about == {
        "table": ("SparseEmbedding", (50, 20), 100, "csr"),
        "thin": ("SparseLinear", (30, 20), 60, "csr"),
        "blocks": ("BlockSparseLinear", (32, 64), 768, "bsr"),
        "head": ("SparseLinear", (50, 20), 100, "csr"),
    }
    assert [layer.density for layer in found.layers] == [0.1, 0.1, 0.375, 0.1]
    rest = 30 + 32 + 20 + 20  # biases and the norm
    assert found.parameters == (100 + 60 + 768 + rest, 1000 + 600 + 2048 + rest)


def test_it_prints_as_a_table() -> None:
    lines = str(report(a_model())).splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "nonzeros", "density", "kernel"]
    assert lines[2].split() == ["thin", "SparseLinear", "30", "x", "20", "60", "10.000%", "csr"]
    assert lines[-1] == "1,030 trained numbers; 3,750 if all were dense"


def test_layers_are_timed_against_dense_ones() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    sparsify_(model, density=0.002)
    found = report(model, tokens=256)
    for layer in found.layers:
        assert layer.sparse_ms > 0
        assert layer.speedup == pytest.approx(layer.dense_ms / layer.sparse_ms)
        assert layer.speedup > 1  # 500 times fewer products
    assert "times as fast" in str(found)


def test_embeddings_are_not_timed() -> None:
    layer = report(nn.Sequential(SparseEmbedding(5, 4, nnz=3)), tokens=4).layers[0]
    assert layer.sparse_ms is layer.speedup is None


def test_a_dense_form_says_that_it_is_dense() -> None:
    layer = SparseLinear(20, 30, density=0.9)
    layer.weight.to_master_()
    found = report(nn.Sequential(layer)).layers[0]
    assert found.kernel == "dense"
    assert "denser than the break-even" in found.reason


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="model must have sparse layers, got none"):
        report(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="tokens must be positive, got 0"):
        report(a_model(), tokens=0)
