"""Checks against fooling oneself: what a circuit found for a task has to be compared with.

Pruning can find something small in anything: it searches thousands of parts. So the same search, with the same number
of nodes, is given a task in which there is nothing to find (labels exchanged at random) and a model that knows nothing
(fresh random weights), and the circuit is held against a plain choice by gradients and against the model it is of.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import GPT
from ..nn import SparseWeight
from .hooks import record
from .masks import MaskSettings
from .prune import STAGES, Cut, Found, Subject, first_nodes, node_effects, node_scores, smallest_prefix
from .tasks import Pairs, Task, task_loss


@dataclass(frozen=True)
class Checks:
    """Losses are mean cross-entropies per sequence over the two candidates, in nats, on held-out pairs.

    Attributes:
        model_loss, model_accuracy: of the whole model.
        circuit_loss, circuit_accuracy: everything but the circuit cut (sufficiency).
        without_circuit_loss: only the circuit's nodes cut (necessity), calibrated on the training pairs.
        zero_loss: the circuit with zeros in place of the means, calibrated on the training pairs.
        shuffled_loss: the search on pairs whose labels were exchanged at random, on such held-out pairs.
        untrained_loss: the search on a model with fresh random weights. Both controls may keep as many nodes as the
            circuit has.
        attribution_nodes: nodes of highest gradient attribution that meet the target; None where all do not.
        divergence: mean Kullback-Leibler divergence in nats of the circuit's next-token distribution from the
            model's, on held-out text that has nothing to do with the task.
        agreement: share of the tokens of that text for which both find the same token most likely.
    """

    model_loss: float
    model_accuracy: float
    circuit_loss: float
    circuit_accuracy: float
    without_circuit_loss: float
    zero_loss: float
    shuffled_loss: float
    untrained_loss: float
    attribution_nodes: int | None
    divergence: float
    agreement: float


def check(
    subject: Subject,
    untrained: Subject,
    task: Task,
    found: Found,
    text: Iterable[Tensor],
    *,
    target: float,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Checks:
    """Every check of a circuit.

    Args:
        subject: the model and its means; ``untrained``: the same with fresh weights (see :func:`untrained_like`).
        task: its circuit is ``found``.
        text: batches of (B, T) ids that were not trained on.
        target: the loss that the circuit was searched for.
        seed: of the shuffling and of the controls' searches.
        on_step: called after each step of learning.
    """
    cut, train, test = found.cut, task.train, task.test
    settings = [trial.settings for trial in found.trials]

    def control(of: Subject, on: Pairs, held_out: Pairs) -> float:
        sizes = found.learned_nodes, cut.node_count
        return of.loss(held_out, best_of_size(of, on, *sizes, settings, seed, on_step))

    divergence, agreement = compare_on_text(subject, cut, text)
    return Checks(
        model_loss=subject.loss(test),
        model_accuracy=subject.accuracy(test),
        circuit_loss=subject.loss(test, cut),
        circuit_accuracy=subject.accuracy(test, cut),
        without_circuit_loss=_calibrated_loss(subject, train, test, Cut(~cut.nodes)),
        zero_loss=_calibrated_loss(without_means(subject), train, test, cut),
        shuffled_loss=control(subject, train.with_shuffled_labels(seed), test.with_shuffled_labels(seed + 1)),
        untrained_loss=control(untrained, train, test),
        attribution_nodes=attribution_size(subject, train, STAGES[0] * target),
        divergence=divergence,
        agreement=agreement,
    )


def best_of_size(
    subject: Subject,
    pairs: Pairs,
    learned: int,
    nodes: int,
    settings: Iterable[MaskSettings],
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Cut:
    """Of one mask for each of the settings, so many nodes: those of least loss.

    They are those of highest score, or, of the ``learned`` nodes of highest score, those with the largest effects: what
    cleaning does for a circuit.
    """
    tried = []
    for number, setting in enumerate(settings):
        scores = node_scores(subject, pairs, setting, seed + number, on_step)
        pool = first_nodes(scores, learned)
        effects = node_effects(subject, pairs, pool).masked_fill(~pool.nodes, -math.inf)
        for cut in (first_nodes(scores, nodes), first_nodes(effects, nodes)):
            tried.append(subject.calibrated(pairs, cut))
    return min(tried, key=lambda pair: pair[0])[1]


def attribution_size(subject: Subject, pairs: Pairs, allowed: float) -> int | None:
    """Nodes that a choice by gradient attribution needs; None where all together do not meet the loss."""
    cut = smallest_prefix(subject, pairs, attribution(subject, pairs), allowed)
    return None if cut is None else cut.node_count


def attribution(subject: Subject, pairs: Pairs) -> Tensor:
    """Of every node, the sum over tokens of |gradient of the task loss * (activation - mean)|: (nodes of the model,).

    Of the sum's absolute value instead, many times as many nodes are needed: effects of opposite signs cancel.
    """
    total = torch.zeros(subject.layout.size, dtype=subject.dtype, device=subject.device)
    for rows in pairs.by_length():
        with record(subject.model, gradients=True) as acts:
            (task_loss(subject.margins(pairs.rows(rows))) * len(rows)).backward()
        parts = {
            name: ((acts[name] - subject.means[name]) * acts[f"{name}.grad"]).detach().abs().sum((0, 1))
            for name in subject.layout.slices
        }
        total += subject.layout.join(parts)
    return total / len(pairs.last)


def without_means(subject: Subject) -> Subject:
    """The same model with zeros in place of the means."""
    return Subject(subject.model, {name: torch.zeros_like(mean) for name, mean in subject.means.items()})


def untrained_like(model: GPT, seed: int = 0) -> GPT:
    """A model of the same shape and densities as training begins with: random positions, random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        density, embedding_density = _density(model.matrices()), _density(model.embeddings())
        return GPT(model.config, density=density, embedding_density=embedding_density).to(model.ln_f.weight.device)


def _density(weights: list[SparseWeight]) -> float:
    return sum(w.entries for w in weights) / sum(w.shape[0] * w.shape[1] for w in weights)


@torch.no_grad()
def compare_on_text(subject: Subject, cut: Cut, text: Iterable[Tensor]) -> tuple[float, float]:
    """Mean divergence in nats, and share of equal most likely tokens, between the model and what a cut leaves of it."""
    divergence = agreement = tokens = 0.0
    for ids in text:
        whole = subject.model(ids).log_softmax(-1)
        with subject.cut(cut) as model:
            part = cut.calibration.logits(model(ids)).log_softmax(-1)
        divergence += F.kl_div(part, whole, reduction="sum", log_target=True).item()
        agreement += (whole.argmax(-1) == part.argmax(-1)).sum().item()
        tokens += ids.numel()
    return divergence / tokens, agreement / tokens


def _calibrated_loss(subject: Subject, train: Pairs, test: Pairs, cut: Cut) -> float:
    return subject.loss(test, subject.calibrated(train, cut)[1])
