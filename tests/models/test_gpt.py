"""The thin GPT: its arithmetic, where it is sparse, and how it generates."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.models import GPT, GPTConfig
from sparsekern.models.config import SUBLAYER_LOCATIONS
from sparsekern.models.gpt import Block
from sparsekern.models.start import Start
from sparsekern.nn import AbsTopK
from sparsekern.train import set_budgets

TINY = GPTConfig(block_size=12, vocab_size=40, n_layer=2, d_model=32, d_head=8)
MODULES = {  # of each location, with the width that AbsTopK sees, in multiples of d_model
    "attn_in": ("attn.act_in", 1),
    "attn_q": ("attn.q", 1),
    "attn_k": ("attn.k", 1),
    "attn_v": ("attn.v", 1),
    "attn_out": ("attn.resid_delta", 1),
    "mlp_in": ("mlp.act_in", 1),
    "mlp_neuron": ("mlp.post_act", 4),
    "mlp_out": ("mlp.resid_delta", 1),
}
FLOORED = {"attn.c_attn": 0, "attn.c_proj": 1, "mlp.c_fc": 0, "mlp.c_proj": 1}  # the neuron's axis


def a_model(seed: int = 0, **changes: Any) -> GPT:
    """A model whose weights are large enough for every part of it to matter."""
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(TINY, **changes)).eval()
    with torch.no_grad():
        for weight in model.matrices() + model.embeddings():
            weight.master.normal_(0, 0.3)
    return model


def some_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(seed))


def project(model: GPT, density: float) -> None:
    set_budgets(model.matrices() + model.embeddings(), density)
    for weight in model.matrices() + model.embeddings():
        weight.project_()


# ---- arithmetic


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 12)])
def test_logits_have_one_row_per_token(shape: tuple[int, int]) -> None:
    assert a_model()(some_ids(*shape)).shape == (*shape, 40)


@pytest.mark.parametrize("shape", [(3, 13), (3,), (1, 2, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ids must be \(B, T\) with T <= 12, got"):
        a_model()(some_ids(*shape))


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model, ids = a_model(), some_ids(2, 12)
    before = model(ids)
    for t in range(12):
        other = ids.clone()
        other[:, t] = (other[:, t] + 1) % 40
        after = model(other)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        changed = (after - before).abs().amax((0, 2))[t:]
        assert changed.min() > 1e-3, t


def test_one_layer_by_hand() -> None:
    model = a_model(n_layer=1, afrac=None)
    ids = some_ids(1, 6)
    block, d_head = model.blocks[0], TINY.d_head
    for p in (block.ln_1.weight, block.ln_2.weight, model.ln_f.weight):
        nn.init.normal_(p, 1, 0.2)
    weights = {name: w.weight.master for name, w in block.named_modules() if name in FLOORED}
    biases = {name: w.bias for name, w in block.named_modules() if name in FLOORED}
    for bias in biases.values():
        nn.init.normal_(bias)

    def normed(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * gain

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[name].T + biases[name]

    x = model.wte.weight.master[ids[0]] + model.wpe.weight.master[:6]
    q, k, v = linear(normed(x, block.ln_1.weight), "attn.c_attn").split(32, dim=-1)
    heads = []
    for h in range(4):
        part = slice(h * d_head, (h + 1) * d_head)
        scores = q[:, part] @ k[:, part].T / math.sqrt(d_head)
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[:, part])
    x = x + linear(torch.cat(heads, -1), "attn.c_proj")
    x = x + linear(F.gelu(linear(normed(x, block.ln_2.weight), "mlp.c_fc")), "mlp.c_proj")
    logits = normed(x, model.ln_f.weight) @ model.lm_head.weight.master.T + model.bigram_table[ids[0]]
    torch.testing.assert_close(model(ids)[0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_use_the_epsilon_of_the_dtype(dtype: torch.dtype) -> None:
    model = a_model().to(dtype)
    norms = [m for m in model.modules() if isinstance(m, nn.RMSNorm)]
    x = torch.full((1, 32), 1e-4, dtype=dtype)  # its mean square is 1e-8, so 1e-5 would swallow it
    expected = 1e-4 / math.sqrt(1e-8 + torch.finfo(dtype).eps)
    assert len(norms) == 5
    for norm in norms:
        torch.testing.assert_close(norm(x), torch.full_like(x, expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("learnable", [True, False], ids=["learned", "fixed"])
def test_bigram_table_adds_the_row_of_the_current_token(learnable: bool) -> None:
    model, ids = a_model(learnable_bigram_table=learnable), some_ids(2, 7)
    assert ("bigram_table" in dict(model.named_parameters())) is learnable
    assert "bigram_table" in model.state_dict()
    with torch.no_grad():
        model.bigram_table.zero_()
        without = model(ids)
        model.bigram_table.copy_(torch.randn(40, 40))
    torch.testing.assert_close(model(ids) - without, model.bigram_table[ids], rtol=1e-4, atol=1e-5)


def test_bigram_table_is_optional() -> None:
    model = a_model(enable_bigram_table=False)
    assert model.bigram_table is None
    assert "bigram_table" not in model.state_dict()
    assert model(some_ids(1, 3)).shape == (1, 3, 40)


def test_loss_is_the_mean_cross_entropy() -> None:
    model, ids, targets = a_model(), some_ids(3, 5), some_ids(3, 5, seed=2)
    logits = model(ids).double()
    chosen = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    assert model.loss(ids, targets).item() == pytest.approx(-chosen.mean().item(), rel=1e-5)


def test_a_fresh_model_knows_nothing() -> None:
    torch.manual_seed(0)
    model = GPT(TINY)
    assert model.loss(some_ids(4, 12), some_ids(4, 12, seed=2)).item() == pytest.approx(math.log(40), rel=0.02)


# ---- initial weights


def test_initial_weights_are_the_published_ones() -> None:
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(TINY, d_model=128))
    assert not model.wpe.weight.master.any()
    for name, m in model.named_modules():
        if name.endswith(("c_attn", "c_fc", "lm_head", "wte")):
            assert m.weight.master.std().item() == pytest.approx(0.02, rel=0.05), name
        if name.endswith("c_proj"):
            assert m.weight.master.std().item() == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.05), name
        if name.endswith(("c_attn", "c_fc", "c_proj")):
            assert not m.bias.any(), name
        if isinstance(m, nn.RMSNorm):
            assert torch.equal(m.weight, torch.ones(128)), name
    assert 0 <= model.bigram_table.min() < model.bigram_table.max() < 0.02
    assert model.bigram_table.mean().item() == pytest.approx(0.01, rel=0.05)


# ---- sparse activations


def counted(model: GPT, ids: Tensor) -> dict[str, tuple[int, int]]:
    """The most nonzeros of a row before and after each AbsTopK."""
    seen: dict[str, tuple[int, int]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, AbsTopK):

            def hook(module: nn.Module, args: tuple[Tensor], y: Tensor, name: str = name) -> None:
                seen[name] = (int((args[0] != 0).sum(-1).max()), int((y != 0).sum(-1).max()))

            handles.append(module.register_forward_hook(hook))
    model(ids)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("afrac", [0.25, 0.3, 0.5])
def test_activations_are_sparse_at_all_eight_locations(afrac: float) -> None:
    expected = {
        f"blocks.{layer}.{name}": (32 * width, math.floor(afrac * 32 * width))
        for layer in range(2)
        for name, width in MODULES.values()
    }
    assert counted(a_model(afrac=afrac), some_ids(2, 12)) == expected
    assert len(expected) == 2 * 8


@pytest.mark.parametrize("location", SUBLAYER_LOCATIONS.split(","))
def test_locations_can_be_chosen(location: str) -> None:
    model = a_model(n_layer=1, afrac_loctypes=location)
    assert set(counted(model, some_ids(1, 3))) == {f"blocks.0.{MODULES[location][0]}"}


@pytest.mark.parametrize("off", [{"afrac": None}, {"afrac_loctypes": ""}], ids=["afrac", "afrac_loctypes"])
def test_activations_may_be_dense(off: dict[str, Any]) -> None:
    assert counted(a_model(**off), some_ids(1, 3)) == {}


# ---- sparse weights


def test_every_matrix_is_sparse_and_its_neurons_have_floors() -> None:
    model = a_model()
    model.set_floor(4)
    weights = {name: m.weight for name, m in model.named_modules() if hasattr(m, "weight") and name.count("ln") == 0}
    expected = {f"blocks.{i}.{name}": (4, axis) for i in range(2) for name, axis in FLOORED.items()}
    expected |= {"wte": (0, None), "wpe": (0, None), "lm_head": (0, None)}
    assert {name: (w.floor, w.axis) for name, w in weights.items()} == expected
    assert {id(w) for w in model.matrices()} == {id(w) for name, w in weights.items() if "blocks" in name}
    assert {id(w) for w in model.embeddings()} == {id(w) for name, w in weights.items() if "blocks" not in name}
    assert all(w.form == "master" and w.nnz == w.shape[0] * w.shape[1] for w in weights.values())


def test_every_neuron_keeps_its_floor() -> None:
    model = a_model()
    model.set_floor(4)
    with torch.no_grad():  # without a floor, these neurons would lose everything
        model.blocks[0].attn.c_attn.weight.master[3].mul_(1e-3)  # a row: the fan-in of a query channel
        model.blocks[0].attn.c_proj.weight.master[:, 5].mul_(1e-3)  # a column: the fan-out of a value channel
        model.blocks[0].mlp.c_fc.weight.master[7].mul_(1e-3)
        model.blocks[0].mlp.c_proj.weight.master[:, 9].mul_(1e-3)
    project(model, 0.25)
    for name, module in model.blocks[0].named_modules():
        if name in FLOORED:
            alive = (module.weight.master != 0).sum(1 - FLOORED[name])
            assert alive.min() == 4, name
            assert len(alive) == {"attn.c_attn": 96, "attn.c_proj": 32, "mlp.c_fc": 128, "mlp.c_proj": 128}[name]


def test_both_forms_give_the_same_logits() -> None:
    model, ids = a_model(), some_ids(2, 12)
    project(model, 0.05)
    logits = model(ids)
    for weight in model.matrices() + model.embeddings():
        weight.to_values_()
    assert not any(w.form == "master" for w in model.matrices() + model.embeddings())
    assert sum(p.numel() for name, p in model.named_parameters() if name.endswith("values")) == sum(
        int(0.05 * w.shape[0] * w.shape[1]) for w in model.matrices() + model.embeddings()
    )
    torch.testing.assert_close(model(ids), logits, rtol=1e-6, atol=1e-6)


# ---- configuration


def test_derived_sizes() -> None:
    assert (TINY.heads, TINY.mlp_width) == (4, 128)
    given = dataclasses.replace(TINY, n_head=3, d_mlp=50)
    assert (given.heads, given.mlp_width) == (3, 50)
    block = Block(given, Start())
    assert block.attn.c_attn.weight.shape == (3 * 24, 32)
    assert block.attn.c_proj.weight.shape == (32, 24)
    assert block.mlp.c_fc.weight.shape == (50, 32)
    assert GPT(given)(some_ids(1, 4)).shape == (1, 4, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 0}, "block_size must be positive, got 0"),
        ({"vocab_size": -1}, "vocab_size must be positive, got -1"),
        ({"n_layer": 0}, "n_layer must be positive, got 0"),
        ({"n_head": -2}, "n_head must be positive, got -2"),
        ({"d_mlp": 0}, "d_mlp must be positive, got 0"),
        ({"d_model": 30}, "d_model must be a multiple of d_head, got 30 and 8"),
        ({"afrac": 0.0}, r"afrac must be in \(0, 1\], got 0.0"),
        ({"afrac": 1.5}, r"afrac must be in \(0, 1\], got 1.5"),
        ({"afrac_loctypes": "attn_in,resid"}, "afrac_loctypes must be among .*, got resid"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


# ---- generation


def test_greedy_generation_takes_the_likeliest_token() -> None:
    model, prompt = a_model(), some_ids(1, 3)
    expected = prompt
    for _ in range(20):  # beyond the block size the context slides
        likeliest = model(expected[:, -12:])[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, likeliest], 1)
    out = model.generate(prompt, 20, temperature=0)
    assert out.tolist() == expected.tolist()
    assert model.generate(prompt, 20, temperature=0).tolist() == out.tolist()
    assert model.generate(prompt, 0).tolist() == prompt.tolist()


def test_sampling_follows_the_generator() -> None:
    model, prompt = a_model(), some_ids(1, 15)

    def sampled(seed: int) -> list[int]:
        return model.generate(prompt, 20, generator=torch.Generator().manual_seed(seed))[0].tolist()

    assert sampled(0) == sampled(0)
    assert sampled(0) != sampled(1)
    assert sampled(0)[:15] == prompt[0].tolist()
    assert len(sampled(0)) == 35


def test_temperature_sharpens() -> None:
    model, prompt = a_model(), some_ids(1, 3)
    greedy = model.generate(prompt, 8, temperature=0)
    cold = model.generate(prompt, 8, temperature=1e-4, generator=torch.Generator().manual_seed(0))
    assert cold.tolist() == greedy.tolist()


def test_generation_ends_at_the_stop_token() -> None:
    model, prompt = a_model(), some_ids(1, 3)
    full = model.generate(prompt, 10, temperature=0)[0].tolist()
    stop = full[6]
    out = model.generate(prompt, 10, temperature=0, stop=stop)[0].tolist()
    assert out == full[: full.index(stop, 3) + 1]
