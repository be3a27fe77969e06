"""``sparsify_``: which layers of a model become sparse, and what they keep."""

import copy

import pytest
import torch
from torch import Tensor, nn

import sparsekern
from sparsekern import sparsify_
from sparsekern.nn import SparseEmbedding, SparseLinear, SparseWeight


class LanguageModel(nn.Module):
    """Embedding and output layer share a weight; the middle layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.middle = nn.Linear(8, 8)
        self.again = self.middle
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.again(self.middle(self.embed(ids)))))


def sparse_names(model: nn.Module) -> set[str]:
    kinds = (SparseLinear, SparseEmbedding)
    return {name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)}


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 6))


def test_layers_keep_their_largest_weights() -> None:
    model = three_layers()
    dense = copy.deepcopy(model)
    assert sparsify_(model, density=0.25) is model
    assert sparse_names(model) == {"0", "1.0", "2"}
    for name in ("0", "1.0", "2"):
        before, after = dense.get_submodule(name), model.get_submodule(name)
        kept = before.weight.abs() >= before.weight.abs().flatten().topk(9).values[-1]
        assert after.weight.nnz == 9
        assert torch.equal(after.weight.to_dense(), before.weight * kept)
        assert torch.equal(after.bias, before.bias)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("*", (), {"0", "1.0", "2"}),
        ("1.*", (), {"1.0"}),
        (["0", "2"], (), {"0", "2"}),
        ("*", "1.*", {"0", "2"}),
        ("*", ["0", "2"], {"1.0"}),
        ("[01]*", "0", {"1.0"}),
    ],
)
def test_include_and_exclude(include: str | list[str], exclude: str | list[str], expected: set[str]) -> None:
    assert sparse_names(sparsify_(three_layers(), density=0.5, include=include, exclude=exclude)) == expected


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (three_layers(), {"include": "3"}),
        (three_layers(), {"exclude": "*"}),
        (nn.Sequential(nn.ReLU(), nn.Conv1d(2, 2, 1)), {}),
    ],
    ids=["include", "exclude", "no-layers"],
)
def test_nothing_to_replace_is_an_error(model: nn.Module, arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no nn.Linear or nn.Embedding matches"):
        sparsify_(model, density=0.5, **arguments)


@pytest.mark.parametrize("density", [-0.1, 1.5])
def test_density_out_of_range(density: float) -> None:
    model = three_layers()
    with pytest.raises(ValueError, match="density must be between 0 and 1"):
        sparsify_(model, density=density)
    assert sparse_names(model) == set()


def test_ties_are_kept() -> None:
    model = LanguageModel()
    dense = copy.deepcopy(model)
    sparsify_(model, density=0.5)
    assert isinstance(model.embed, SparseEmbedding)
    assert isinstance(model.head, SparseLinear)
    assert model.embed.weight is model.head.weight
    assert model.middle is model.again
    assert sum(isinstance(m, SparseWeight) for m in model.modules()) == 2
    names = [
        "embed.weight.values",
        "middle.bias",
        "middle.weight.values",
        "norm.weight",
        "norm.bias",
        "head.bias",
    ]
    assert [name for name, _ in model.named_parameters()] == names
    with torch.no_grad():
        for ours, theirs in ((model.embed, dense.embed), (model.middle, dense.middle)):
            theirs.weight.copy_(ours.weight.to_dense())
    ids = torch.arange(20)
    torch.testing.assert_close(model(ids), dense(ids))


def test_an_optimizer_sees_a_tied_weight_once() -> None:
    model = sparsify_(LanguageModel(), density=0.5)
    groups = sparsekern.optim.param_groups(model)
    assert [p.numel() for p in groups[0]["params"]] == [80, 32]
    assert sum(len(group["params"]) for group in groups) == 6
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.embed.weight.to_dense().detach()
    model(torch.arange(20)).sum().backward()
    grad = model.embed.weight.values.grad.clone()
    optimizer.step()
    moved = before - model.head.weight.to_dense()
    torch.testing.assert_close(moved[moved != 0], grad[grad != 0], rtol=1e-4, atol=1e-6)


def test_a_model_used_twice_is_replaced_once() -> None:
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model = sparsify_(nn.Sequential(block, nn.Sequential(block)), density=0.5)
    assert sparse_names(model) == {"0.0", "1.0.0"}
    assert model[0][0] is model[1][0][0]


@pytest.mark.parametrize(("layer", "kind"), [(nn.Linear(6, 6), SparseLinear), (nn.Embedding(6, 6), SparseEmbedding)])
def test_a_root_layer_is_returned(layer: nn.Module, kind: type[nn.Module]) -> None:
    sparse = sparsify_(layer, density=0.5)
    assert type(sparse) is kind
    assert sparse.weight.nnz == 18


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_subclasses_of_linear_are_left_alone() -> None:
    model = nn.Sequential(Doubled(6, 6), nn.Linear(6, 6))
    with pytest.warns(UserWarning, match=r"sparsify_ left dense: 0 \(Doubled is a subclass\)$"):
        sparsify_(model, density=0.5)
    assert sparse_names(model) == {"1"}


class Classifier(nn.Module):
    """With the modules of torch that read their children's weights themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        x = self.attend(x, x, x)[0]
        return self.head(self.decoder(x, x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_parents_that_read_their_childrens_weights(training: bool) -> None:
    torch.manual_seed(0)
    model, x = Classifier().train(training), torch.randn(2, 5, 8)
    with pytest.warns(UserWarning, match="sparsify_ left dense") as caught:
        sparsify_(model, density=1.0)
    said = str(caught[0].message)
    assert "encoder.layers.0.linear1 (TransformerEncoderLayer reads its weight itself)" in said
    assert "attend.out_proj (MultiheadAttention reads its weight itself)" in said
    assert said.count("reads its weight itself") == 6
    assert sparse_names(model) == {"head", "decoder.linear1", "decoder.linear2"}
    torch.manual_seed(0)
    dense = Classifier().train(training)
    with torch.no_grad():  # where the encoder takes its fast path
        torch.manual_seed(1)
        expected = dense(x)
        torch.manual_seed(1)
        torch.testing.assert_close(model(x), expected)


class Conv1D(nn.Module):
    """As Hugging Face defines it."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_hugging_face_conv1d() -> None:
    model, x = nn.Sequential(Conv1D(7, 5), nn.Linear(7, 3)), torch.randn(2, 4, 5)
    expected = model(x)
    sparsify_(model, density=1.0)
    assert sparse_names(model) == {"0", "1"}
    assert model[0].weight.shape == (7, 5)
    torch.testing.assert_close(model(x), expected)


def test_only_what_another_module_reads_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"left dense: out_proj \(MultiheadAttention reads its weight itself\)"):
        sparsify_(nn.MultiheadAttention(8, 2), density=0.5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_mode_is_kept(training: bool) -> None:
    model = sparsify_(three_layers().train(training), density=0.5)
    assert {m.training for m in model.modules()} == {training}


def test_frozen_layers_stay_frozen() -> None:
    model = three_layers()
    model[0].requires_grad_(False)
    sparsify_(model, density=0.5)
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[2].parameters())


def test_dtype_is_kept() -> None:
    model = sparsify_(three_layers().double(), density=0.5)
    assert model(torch.ones(2, 6, dtype=torch.float64)).dtype == torch.float64


def test_embeddings_with_options_are_left_alone() -> None:
    model = nn.ModuleList([nn.Embedding(8, 4, padding_idx=0), nn.Embedding(8, 4, max_norm=1.0), nn.Embedding(8, 4)])
    with pytest.warns(UserWarning, match=r"0 \(it has padding_idx\); 1 \(it has max_norm\)$"):
        sparsify_(model, density=0.5)
    assert [type(layer) for layer in model] == [nn.Embedding, nn.Embedding, SparseEmbedding]
