"""The ways people use PyTorch: compiled, functional, checkpointed, accumulated, copied; and what autograd notices."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpt_options import EVERY_OPTION
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from sparsekern import ops
from sparsekern.models import GPT, GPTConfig
from sparsekern.nn import BlockSparseLinear, SparseEmbedding, SparseLinear
from sparsekern.optim import SparseAdamW, param_groups

CONFIG = GPTConfig(block_size=12, vocab_size=40, n_layer=1, d_model=32, d_head=8)
ALL = replace(CONFIG, **EVERY_OPTION)
FORMS = ("values", "active", "master")


def a_model(form: str = "values", config: GPTConfig = CONFIG, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config, density=0.3)
    for weight in model.matrices() + model.embeddings():
        nn.init.normal_(weight.values, 0, 0.3)
    if form != "values":
        SparseAdamW(param_groups(model), lr=0.0, mode="exact" if form == "master" else "sparse")
    return model


def some_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))
    return dict(zip(trained, found, strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-6, msg=name)


# ---- torch.compile


@pytest.mark.parametrize(
    ("form", "config"),
    [*((form, CONFIG) for form in FORMS), ("values", ALL)],
    ids=[*FORMS, "values, all options"],
)
def test_a_model_compiles_as_one_graph_for_all_shapes(form: str, config: GPTConfig) -> None:
    model = a_model(form, config)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for shape in ((2, 7), (3, 12), (5, 4)):
        ids, targets = some_ids(*shape), some_ids(*shape, seed=2)
        loss, expected = compiled(ids, targets), model.loss(ids, targets)
        torch.testing.assert_close(loss, expected)
        assert_same(gradients(model, loss), gradients(model, expected))
        graphs.append(counter.frame_count)
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * 3  # the first one serves all


# ---- torch.func


@pytest.mark.parametrize("form", FORMS)
def test_functional_call(form: str) -> None:
    model, other = a_model(form), a_model(form)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    ids = some_ids(2, 7)
    theirs = dict(other.named_parameters())
    found = functional_call(model, theirs, (ids,))
    torch.testing.assert_close(found, other(ids))
    assert not torch.equal(found, model(ids))


@pytest.mark.parametrize("form", FORMS)
def test_functional_gradients(form: str) -> None:
    """By autograd; ``torch.func.grad`` cannot see through ops that are registered with ``torch.library``."""
    model, ids = a_model(form), some_ids(2, 7)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = functional_call(model, parameters, (ids,)).square().mean()
    found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert_same(found, gradients(model, model(ids).square().mean()))


# ---- checkpointing and accumulation


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients(form: str, reentrant: bool) -> None:
    model, x = a_model(form), torch.randn(2, 7, 32, requires_grad=True)
    block = model.blocks[0]
    plain = gradients(block, block(x).square().mean())
    block.zero_grad()
    checkpoint(block, x, use_reentrant=reentrant).square().mean().backward()
    assert_same({name: p.grad for name, p in block.named_parameters()}, plain)


@pytest.mark.parametrize("form", FORMS)
def test_accumulated_gradients_are_those_of_the_whole_batch(form: str) -> None:
    model, ids = a_model(form), some_ids(6, 7)
    whole = gradients(model, model.loss(ids, ids))
    for part in ids.chunk(3):
        (model.loss(part, part) / 3).backward()
    assert_same({name: p.grad for name, p in model.named_parameters()}, whole)


# ---- copies


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same_and_share_nothing(form: str, copied: Callable[[GPT], GPT]) -> None:
    model, ids = a_model(form, ALL), some_ids(2, 7)
    other = copied(model)
    assert torch.equal(other(ids), model(ids))
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}
    assert not own & {t.data_ptr() for t in (*other.parameters(), *other.buffers()) if t.numel()}
    assert other.lm_head.weight is other.wte.weight


@pytest.mark.parametrize("form", FORMS)
def test_a_model_is_filled_from_one_with_other_nonzeros(form: str) -> None:
    torch.manual_seed(3)
    source, target = a_model(form), GPT(CONFIG, density=0.05)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(some_ids(2, 7)), source(some_ids(2, 7)))
    optimizer = SparseAdamW(param_groups(target), lr=0.01, mode="exact" if form == "master" else "sparse")
    target.loss(some_ids(2, 7), some_ids(2, 7)).backward()
    optimizer.step()


# ---- what autograd notices


def in_place_cases() -> dict[str, tuple[Tensor, Callable[[], Any]]]:
    """A tensor that is in a graph, and what changes it behind autograd's back."""
    weight = torch.randn(6, 5)
    cases: dict[str, tuple[Tensor, Callable[[], Any]]] = {
        "topk_project_": (weight, lambda: ops.topk_project_(weight, 4)),
    }
    for mode in ("exact", "sparse"):
        layer = SparseLinear(5, 6, density=0.4)
        optimizer = SparseAdamW(param_groups(layer), lr=0.1, mode=mode)
        layer(torch.randn(3, 5)).sum().backward()
        cases[f"SparseAdamW, {mode}"] = (layer.weight.parameter, optimizer.step)
    layer = BlockSparseLinear(32, 32, 16, blocks=2)
    optimizer = SparseAdamW(param_groups(layer), lr=0.1, mode="sparse", candidates=1.0)
    layer(torch.randn(3, 32)).sum().backward()
    cases["SparseAdamW, blocks"] = (layer.weight.parameter, optimizer.step)
    return cases


@pytest.mark.parametrize("name", ["topk_project_", "SparseAdamW, exact", "SparseAdamW, sparse", "SparseAdamW, blocks"])
def test_autograd_notices_changes_in_place(name: str) -> None:
    torch.manual_seed(0)
    tensor, change = in_place_cases()[name]
    before = tensor._version
    factor = torch.ones_like(tensor, requires_grad=True)
    product = factor * tensor.detach()  # keeps the tensor for its gradient; a detached one shares its version
    change()
    assert tensor._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


# ---- dtypes


@pytest.mark.parametrize("form", FORMS)
def test_autocast_casts_activations_only(form: str) -> None:
    model, ids = a_model(form, replace(CONFIG, afrac=None)), some_ids(2, 7)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids)
    loss = logits.float().square().mean()
    found, expected = gradients(model, loss), gradients(model, model(ids).square().mean())
    assert {name: p.dtype for name, p in model.named_parameters()} == kinds
    for name, x in expected.items():
        assert found[name].dtype == torch.float32, name
        assert (found[name] - x).norm() <= 0.1 * x.norm() + 1e-6, name


@pytest.mark.parametrize("isa_dtype", [torch.bfloat16, torch.float64])
def test_layers_take_every_dtype_on_every_instruction_set(isa: str, isa_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.float32 if isa_dtype == torch.bfloat16 else torch.float64
    layer = SparseLinear(40, 24, density=0.2).to(values)
    table = SparseEmbedding(30, 40, density=0.2).to(values)
    nn.init.normal_(table.weight.values)
    x = table(torch.arange(30)).detach().to(isa_dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == isa_dtype
    expected = nn.functional.linear(x.double(), layer.weight.to_dense().double(), layer.bias.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-2 if isa_dtype == torch.bfloat16 else 1e-12, atol=1e-2)
    y.sum().backward()
    assert x.grad.dtype == isa_dtype
    assert layer.weight.values.grad.dtype == values
