"""Every option of the GPT against the published forward pass in plain torch."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_gpt import dense_logits
from gpt_options import EVERY_OPTION
from torch import Tensor, nn

from sparsekern import checkpoint
from sparsekern.circuits import intervene, record
from sparsekern.models import GPT, GPTConfig
from sparsekern.models.config import LOCATIONS
from sparsekern.nn import CausalAttention
from sparsekern.ops.causal_attention import causal_attention
from sparsekern.optim import SparseAdamW, param_groups

TINY = GPTConfig(block_size=12, vocab_size=40, n_layer=2, d_model=32, d_head=8)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "concatenated positions": {"d_pos_emb": 6},
    "sines": {"d_pos_emb": 6, "sinusoidal_cat_pos_emb": True},
    "sink": {"sink": True},
    "ReLU": {"activation_type": "relu"},
    "residual ReLU": {"residual_activation_type": "relu"},
    "ten locations": {"afrac_loctypes": ",".join(LOCATIONS), "afrac": 0.5},
    "tied": {"tied_unembed": True},
    "LayerNorm": {"rms_norm": False},
    "LayerNorm without bias": {"rms_norm": False, "ln_bias": False},
    "final bias": {"final_logits_bias": True},
    "without bias": {"bias": False},
    "other widths": {"n_head": 3, "d_mlp": 50, "d_pos_emb": 5},
    "all": EVERY_OPTION,
}


def a_model(form: str = "master", dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> GPT:
    """One whose numbers are large enough for every part of it to matter."""
    torch.manual_seed(seed)
    config = dataclasses.replace(TINY, **changes)
    model = GPT(config, density=None if form == "master" else 0.4).to(dtype).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and not (config.sinusoidal_cat_pos_emb and tensor is model.wpe.weight):
                tensor.normal_(0, 0.4)
    return model


def some_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", ["master", "values"])
@pytest.mark.parametrize("option", OPTIONS)
def test_logits_are_the_published_ones(option: str, form: str) -> None:
    model, ids = a_model(form, **OPTIONS[option]), some_ids(3, 11)
    torch.testing.assert_close(model(ids), dense_logits(model, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("option", OPTIONS)
def test_hook_points_see_the_published_activations(option: str) -> None:
    model, ids = a_model(**OPTIONS[option]), some_ids(2, 7)
    expected: dict[str, Tensor] = {}
    dense_logits(model, ids, expected.__setitem__)
    expected.pop("", None)  # the residual after a layer is the next one's resid_in
    with record(model) as acts:
        model(ids)
    assert set(acts) == set(expected) == set(model.hook_points())
    for name, x in expected.items():
        torch.testing.assert_close(acts[name], x, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_are_those_of_the_dense_pass(option: str) -> None:
    model, ids = a_model(**OPTIONS[option]), some_ids(2, 7)
    parameters = dict(model.named_parameters())
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    assert set(parameters) - set(trained) == ({"wpe.weight"} if option == "sines" else set())
    weights = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = (
        torch.autograd.grad((logits * weights).square().sum(), list(trained.values()))
        for logits in (model(ids), dense_logits(model, ids))
    )
    for name, a, b in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7, msg=name)


def test_new_parts_begin_as_published() -> None:
    model = GPT(dataclasses.replace(TINY, block_size=512, d_pos_emb=32, sink=True, final_logits_bias=True))
    assert not model.final_logits_bias.any()
    assert "final_logits_bias" in dict(model.named_buffers())
    assert not any(block.attn.attend.sink.any() for block in model.blocks)
    assert type(model.wpe) is nn.Embedding
    assert model.wpe.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert len(model.embeddings()) == 2


def test_sines_have_the_published_periods() -> None:
    table = dataclasses.replace(TINY, block_size=64, d_pos_emb=4, sinusoidal_cat_pos_emb=True).sinusoids()
    t = torch.arange(64.0)
    angles = 2 * torch.pi * t[:, None] / torch.tensor([4.0, 64.0])
    torch.testing.assert_close(table, torch.cat([angles.sin(), angles.cos()], 1), rtol=0, atol=1e-5)


# ---- tied embeddings


def test_tied_embeddings_are_one_weight() -> None:
    model = a_model(tied_unembed=True)
    assert model.lm_head.weight is model.wte.weight
    assert [id(w) for w in model.embeddings()] == [id(model.wte.weight), id(model.wpe.weight)]
    groups = param_groups(model)
    assert sum(p is model.wte.weight.master for group in groups for p in group["params"]) == 1


@pytest.mark.parametrize("form", ["master", "values", "active"])
def test_checkpoints_hold_what_is_tied_once(tmp_path: Path, form: str) -> None:
    model, ids = a_model("values", torch.float32, tied_unembed=True), some_ids(2, 7)
    if form == "master":
        for weight in model.embeddings() + model.matrices():
            weight.to_master_()
    optimizer = SparseAdamW(param_groups(model), lr=0.01, mode="sparse" if form == "active" else "exact")
    if form != "values":
        model.loss(ids, ids).backward()
        optimizer.step()
    checkpoint.save(tmp_path / "all", model, optimizer, {})
    checkpoint.save_weights(tmp_path / "weights", model, {})
    for name in ("all", "weights"):
        other = a_model("values", torch.float32, seed=9, tied_unembed=True)
        checkpoint.load(tmp_path / name, other)
        assert other.lm_head.weight is other.wte.weight
        assert torch.equal(other(ids), model(ids)) or name == "weights"
        torch.testing.assert_close(other(ids), model(ids), rtol=1e-5, atol=1e-5)


def test_checkpoints_of_plain_modules_may_be_tied(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["table"].weight
        return model

    model, other = tied(0), tied(1)
    checkpoint.save_weights(tmp_path / "w", model, {})
    checkpoint.load(tmp_path / "w", other)
    assert other["head"].weight is other["table"].weight
    assert torch.equal(other["head"].weight, model["table"].weight)


# ---- dropout


def test_dropout_acts_in_training_only() -> None:
    model, ids = a_model(dropout=0.3, d_pos_emb=4, dropout_cat_pos_emb=True, afrac=None), some_ids(2, 7)
    torch.testing.assert_close(model(ids), dense_logits(model, ids), rtol=1e-9, atol=1e-9)
    model.train()
    torch.manual_seed(0)
    first, second = model(ids), model(ids)
    torch.manual_seed(0)
    assert torch.equal(model(ids), first)
    assert not torch.equal(first, second)


def test_dropout_is_where_it_was_published() -> None:
    """The rate shows in the zeros of what each place passes on, and means stay as they are."""
    model = a_model(n_layer=1, dropout=0.25, d_pos_emb=32, afrac=None, block_size=256).train()
    attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
    seen: dict[nn.Module, Tensor] = {}
    for module in (model.dropout, attn.dropout, mlp.dropout):
        module.register_forward_hook(lambda m, args, y: seen.__setitem__(m, y / args[0]))
    positions: list[Tensor] = []
    model.blocks[0].ln_p1.register_forward_hook(lambda m, args, y: positions.append(args[0]))
    model(torch.zeros(4, 256, dtype=torch.int64))
    assert len(seen) == 3
    for factors in seen.values():
        assert (factors == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
        assert factors.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(positions[0], model.wpe.weight)  # but where dropout_cat_pos_emb says so


def test_dropout_of_attention() -> None:
    attend = CausalAttention(dropout=0.25).train()
    uniform = torch.zeros(4, 256, 4, 8, dtype=torch.float64)
    y = attend(uniform, uniform, uniform + 1)
    assert y[:, 0].unique().tolist() == pytest.approx([0, 4 / 3])  # a token that sees itself alone
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(attend.eval()(uniform, uniform, uniform + 1), causal_attention(uniform, uniform, uniform + 1))


# ---- gradient checkpointing


def test_gradient_checkpointing_changes_no_bit() -> None:
    ids = some_ids(3, 11)
    grads = []
    for option in (False, True):
        model = a_model(dtype=torch.float32, **EVERY_OPTION, grad_checkpointing=option).train()
        model.loss(ids, ids).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_gradient_checkpointing_keeps_less() -> None:
    """Inside of sublayers nothing is kept for the backward pass."""

    def kept(option: bool) -> int:
        model, ids = a_model(grad_checkpointing=option).train(), some_ids(3, 11)
        known = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            if t.data_ptr() not in known:
                sizes[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model.loss(ids, ids)
        return sum(sizes.values())

    assert kept(True) < kept(False) / 3


def test_hooks_work_with_gradient_checkpointing() -> None:
    ids = some_ids(2, 7)
    recorded = []
    for option in (False, True):
        model = a_model(grad_checkpointing=option).train()
        calls: list[str] = []

        def change(x: Tensor, calls: list[str] = calls) -> Tensor:
            calls.append("called")
            return x * 0.5

        with intervene(model, {"0.mlp.post_act": change}), record(model, gradients=True) as acts:
            model.loss(ids, ids).backward()
        assert len(calls) == 1
        recorded.append(acts)
    assert set(recorded[0]) == set(recorded[1])
    assert {name for name in recorded[0] if name.endswith(".grad")}
    for name, x in recorded[0].items():
        torch.testing.assert_close(recorded[1][name], x, rtol=1e-9, atol=1e-12, msg=name)


# ---- training, copies, errors


@pytest.mark.parametrize("mode", ["exact", "sparse"])
def test_a_model_with_every_option_learns(mode: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, **EVERY_OPTION, dropout=0.05, grad_checkpointing=True)
    model = GPT(config, density=0.3 if mode == "sparse" else None)
    optimizer = SparseAdamW(param_groups(model), lr=0.02, mode=mode)
    ids = some_ids(8, 12).cumsum(1) % 40
    losses = []
    for _ in range(60):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    sinks = torch.cat([block.attn.attend.sink for block in model.blocks])
    assert sinks.abs().min() > 0


def test_copies_are_independent() -> None:
    model, ids = a_model(**EVERY_OPTION), some_ids(2, 7)
    other = copy.deepcopy(model)
    assert other.lm_head.weight is other.wte.weight
    assert torch.equal(other(ids), model(ids))
    with torch.no_grad():
        other.wte.weight.master.zero_()
    assert not torch.equal(other(ids), model(ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_type": "tanh"}, "activation_type must be gelu or relu, got 'tanh'"),
        ({"residual_activation_type": "gelu"}, "residual_activation_type must be identity or relu, got 'gelu'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"d_pos_emb": 0}, "d_pos_emb must be positive, got 0"),
        ({"sinusoidal_cat_pos_emb": True}, "d_pos_emb must be even for sinusoidal_cat_pos_emb, got None"),
        ({"sinusoidal_cat_pos_emb": True, "d_pos_emb": 5}, "d_pos_emb must be even for .*, got 5"),
        ({"afrac_loctypes": "resid_post_attn,resid"}, "afrac_loctypes must be among .*, got resid"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
