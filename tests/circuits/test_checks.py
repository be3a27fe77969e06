"""What a circuit is compared with."""

import math

import pytest
import torch
import torch.nn.functional as F
from planted import Planted, quote

from sparsekern.circuits import Cut, Subject, check, find_cut, mean_activations, record, task_loss, untrained_like
from sparsekern.circuits.checks import attribution, attribution_size, best_of_size, compare_on_text, without_means
from sparsekern.circuits.masks import CENTRES
from sparsekern.circuits.tasks import Task, margins
from sparsekern.nn import SparseWeight


@pytest.fixture(scope="module")
def quoted() -> Planted:
    return quote()


def cut_of(planted: Planted) -> Cut:
    layout = planted.subject.layout
    nodes = torch.zeros(layout.size, dtype=torch.bool)
    for location, channel in planted.nodes:
        nodes[layout.slices[location].start + channel] = True
    return Cut(nodes)


def test_checks_of_a_planted_circuit(quoted: Planted) -> None:
    subject = quoted.subject
    untrained = untrained_like(quoted.model)
    found = find_cut(subject, quoted.train, budget=1)
    task = Task("quote", "", "", quoted.train, quoted.test, (("", ""), ("", "")))
    blank = Subject(untrained, mean_activations(untrained, [quoted.text]))
    checks = check(subject, blank, task, found, [quoted.text[:50]], target=0.15)
    assert checks.model_loss < 0.01
    assert checks.circuit_loss < 0.01
    assert (checks.model_accuracy, checks.circuit_accuracy) == (1.0, 1.0)
    assert checks.without_circuit_loss > 0.5  # it is necessary
    assert checks.shuffled_loss > 0.5
    assert checks.untrained_loss > 0.5
    assert checks.attribution_nodes >= len(quoted.nodes)
    assert 0 <= checks.agreement <= 1
    assert checks.divergence >= 0


def test_attribution_is_gradient_times_distance_from_the_mean(quoted: Planted) -> None:
    subject, pairs = quoted.subject, quoted.train
    found = subject.layout.split(attribution(subject, pairs))
    place, channel, step = "0.mlp.post_act", 2, 1e-3
    with record(subject.model, place.replace(".", r"\.")) as acts, torch.no_grad():
        subject.model(pairs.ids)
    x = acts[place].detach()
    total = 0.0
    for t in range(x.shape[1]):  # the gradient by differences, token by token
        losses = []
        for sign in (1, -1):
            moved = x.clone()
            moved[:, t, channel] += sign * step
            handle = subject.model.hook_points()[place].register_forward_hook(lambda _m, _i, _o, y=moved: y)
            losses.append(F.softplus(-margins(subject.model, pairs)).double())
            handle.remove()
        gradient = (losses[0] - losses[1]) / (2 * step) / len(x)
        total += (gradient * (x[:, t, channel] - subject.means[place][channel])).abs().sum().item()
    assert found[place][channel].item() == pytest.approx(total, rel=0.05, abs=1e-7)
    assert attribution_size(subject, pairs, 0.1) >= len(quoted.nodes)


def test_a_control_keeps_exactly_so_many_nodes(quoted: Planted) -> None:
    cut = best_of_size(quoted.subject, quoted.train.with_shuffled_labels(0), 60, 9, [CENTRES], 0)
    assert cut.node_count == 9


def test_an_untrained_model_has_the_same_shape_and_other_weights(quoted: Planted) -> None:
    fresh, again, other = (untrained_like(quoted.model, seed) for seed in (0, 0, 1))
    for name, weight in quoted.model.named_modules():
        if isinstance(weight, SparseWeight):
            new = fresh.get_submodule(name)
            assert new.shape == weight.shape
            assert new.to_dense().equal(again.get_submodule(name).to_dense())
    nnz = [sum(w.nnz for w in model.matrices()) for model in (quoted.model, fresh)]
    assert nnz[1] == pytest.approx(nnz[0], rel=0.01)
    assert not fresh.blocks[0].mlp.c_fc.weight.to_dense().equal(other.blocks[0].mlp.c_fc.weight.to_dense())


def test_on_text_the_whole_model_agrees_with_itself(quoted: Planted) -> None:
    subject = quoted.subject
    assert compare_on_text(subject, subject.all(), [quoted.text]) == (0.0, 1.0)
    divergence, agreement = compare_on_text(subject, cut_of(quoted), [quoted.text[:20], quoted.text[20:30]])
    with torch.no_grad(), subject.cut(cut_of(quoted)):
        part = subject.model(quoted.text[:30]).log_softmax(-1)
    with torch.no_grad():
        whole = subject.model(quoted.text[:30]).log_softmax(-1)
    assert divergence == pytest.approx((whole.exp() * (whole - part)).sum(-1).mean().item(), rel=1e-4)
    assert agreement == pytest.approx((whole.argmax(-1) == part.argmax(-1)).double().mean().item())


def test_zero_ablation_is_another_thing(quoted: Planted) -> None:
    subject = quoted.subject
    zeroed = without_means(subject)
    with (
        zeroed.cut(Cut(torch.zeros(subject.layout.size, dtype=torch.bool))),
        record(subject.model, "final_resid") as acts,
    ):
        logits = subject.model(quoted.test.ids, quoted.test.last)
    assert (acts["final_resid"] == 0).all()
    assert logits.abs().max() == 0
    assert task_loss(subject.margins(quoted.test, cut_of(quoted))).item() != pytest.approx(
        zeroed.loss(quoted.test, cut_of(quoted)), abs=1e-9
    )
    assert math.isclose(subject.loss(quoted.test, cut_of(quoted)), 0, abs_tol=0.15)
