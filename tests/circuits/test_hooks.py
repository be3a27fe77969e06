"""Recording and changing activations."""

import pytest
import torch
import torch.nn.functional as F

from sparsekern.circuits import intervene, record
from sparsekern.models import GPT, GPTConfig

IDS = torch.tensor([[1, 5, 2, 7], [3, 3, 0, 9]])
WIDTHS = {"attn.q": 16, "attn.k": 16, "attn.v": 16, "attn.y": 16, "mlp.post_act": 64}


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, vocab_size=20, n_layer=2, d_model=16, d_head=4), density=0.5)


def test_every_point_is_recorded_under_its_published_name(model: GPT) -> None:
    with record(model) as acts:
        model(IDS)
    places = ["resid_in", "attn.act_in", "attn.q", "attn.k", "attn.v", "attn.y", "attn.resid_delta"]
    places += ["resid_mid", "mlp.act_in", "mlp.post_act", "mlp.resid_delta"]
    assert list(acts) == [f"{i}.{place}" for i in range(2) for place in places] + ["final_resid"]
    for name, x in acts.items():
        assert x.shape == (2, 4, WIDTHS.get(name.partition(".")[2], 16)), name


def test_what_is_recorded_is_what_the_names_say(model: GPT) -> None:
    with record(model) as acts:
        logits = model(IDS)
    at = {name: x.detach() for name, x in acts.items()}
    torch.testing.assert_close(at["0.resid_in"] + at["0.attn.resid_delta"], at["0.resid_mid"])
    torch.testing.assert_close(at["1.resid_mid"] + at["1.mlp.resid_delta"], at["final_resid"])
    for name, x in at.items():  # after AbsTopK: a quarter of the channels
        if name.rpartition(".")[2] in ("act_in", "q", "k", "v", "resid_delta", "post_act"):
            assert (x != 0).sum(-1).max() <= x.shape[-1] // 4, name
    mlp = model.blocks[1].mlp
    dense = mlp.c_proj.weight.to_dense()
    torch.testing.assert_close(
        mlp.resid_delta(F.linear(at["1.mlp.post_act"], dense, mlp.c_proj.bias)), at["1.mlp.resid_delta"]
    )
    expected = F.linear(model.ln_f(at["final_resid"]), model.lm_head.weight.to_dense()) + model.bigram_table[IDS]
    torch.testing.assert_close(logits, expected)


def test_names_are_a_regular_expression(model: GPT) -> None:
    with record(model, r"\d+\.mlp\..*") as acts:
        model(IDS)
    assert list(acts) == [f"{i}.mlp.{place}" for i in range(2) for place in ("act_in", "post_act", "resid_delta")]
    with pytest.raises(ValueError, match="names must match one of 0.resid_in.*got '0.mlp'"), record(model, "0.mlp"):
        pass


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_recorded(model: GPT, frozen: bool) -> None:
    model.requires_grad_(not frozen)
    with record(model, r"0\.attn\.v|final_resid", gradients=True) as acts:
        loss = model(IDS).square().sum()
        loss.backward()
    expected = torch.autograd.functional.jacobian(
        lambda x: F.linear(model.ln_f(x), model.lm_head.weight.to_dense()).add(model.bigram_table[IDS]).square().sum(),
        acts["final_resid"].detach(),
    )
    torch.testing.assert_close(acts["final_resid.grad"], expected, rtol=1e-4, atol=1e-5)
    assert acts["0.attn.v.grad"].abs().sum() > 0


def test_interventions_change_the_run_and_are_recorded(model: GPT) -> None:
    with record(model) as before:
        plain = model(IDS)
    with intervene(model, {"1.mlp.post_act": torch.zeros_like}), record(model) as after:
        changed = model(IDS)
    assert after["1.mlp.post_act"].abs().sum() == 0
    torch.testing.assert_close(after["1.mlp.act_in"], before["1.mlp.act_in"], rtol=0, atol=0)
    assert (changed - plain).abs().max() > 1e-4
    torch.testing.assert_close(model(IDS), plain, rtol=0, atol=0)  # nothing stays behind


def test_the_record_comes_after_interventions_whichever_is_outside(model: GPT) -> None:
    with record(model, "final_resid") as acts, intervene(model, {"final_resid": lambda x: x * 0 + 3}):
        model(IDS)
    assert (acts["final_resid"] == 3).all()


def test_nested_interventions_act_from_the_inside(model: GPT) -> None:
    with (
        intervene(model, {"final_resid": lambda x: x + 1}),
        intervene(model, {"final_resid": lambda x: x * 0}),
        record(model, "final_resid") as acts,
    ):
        model(IDS)
    assert (acts["final_resid"] == 1).all()


def test_an_unknown_point_is_named(model: GPT) -> None:
    with (
        pytest.raises(ValueError, match="changes must be of 0.resid_in, .*; got 7.attn.q"),
        intervene(model, {"7.attn.q": torch.zeros_like}),
    ):
        pass


def test_hooks_are_removed_when_the_model_fails(model: GPT) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), intervene(model, {"0.attn.q": fail}):
        model(IDS)
    model(IDS)


def test_logits_at_one_position(model: GPT) -> None:
    at = torch.tensor([3, 1])
    torch.testing.assert_close(model(IDS, at), model(IDS)[torch.arange(2), at])
