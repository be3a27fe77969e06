"""The smallest circuit that still does a task: learned node masks, bisection, cleaning, and then the edges.

Nodes are found as in Gao et al. 2025, appendix A.5: a mask is learned for each of several settings, and the one with
the smallest circuit at the target loss wins. They left what remains without effect to be cleaned by hand and stopped at
nodes; here leftovers are dropped one by one while the loss allows it, and edges after them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models import GPT
from .calibrate import UNCALIBRATED, Calibration, calibrate
from .masks import CENTRES, MaskSettings, learn_scores
from .nodes import EdgeGroup, Layout, Means, edges_between, edges_without, with_constants, with_nodes, without_edges
from .tasks import Pairs, accuracy, margins, task_loss

TARGET = 0.15  # nats, as published
# Shares of the target that have to be met once nodes, edges, and again nodes were dropped: each step has a little room.
STAGES = (0.75, 0.8, 0.85)
UNSEEN = 4  # one pair in so many is kept from the search, to see whether its circuit is good on other pairs too
TIGHTER = 0.85  # times the target of before, where it is not
ROUNDS = 4  # of cleaning, at most
SPREAD = {"k_coef": 10.0, "lr": 3.0, "weight_decay": 3.0, "inv_beta2": 3.0, "heaviside_temp": 3.0}  # around the centres
FEW_PAIRS = 64  # on which a cut is tried first
CLEARLY_WORSE = 1.25  # times the loss allowed, on these: it is not tried on all
FIRST_CHUNKS = 4  # parts of the circuit that cleaning tries to drop first


@dataclass(frozen=True)
class Cut:
    """What is left of a model.

    Attributes:
        nodes: (nodes of the model,) bool, those that are kept.
        removed: weights between them that are cut.
        calibration: of the logits.
    """

    nodes: Tensor
    removed: tuple[EdgeGroup, ...] = ()
    calibration: Calibration = UNCALIBRATED

    @property
    def node_count(self) -> int:
        return int(self.nodes.sum())

    def to(self, device: torch.device | str) -> "Cut":
        return replace(self, nodes=self.nodes.to(device), removed=tuple(group.to(device) for group in self.removed))


class Subject:
    """A model whose parts can be cut, and the means that take their place.

    Args:
        model: it is put into ``eval`` mode, and its parameters get no gradients.
        means: of :func:`mean_activations`; zeros for zero ablation.
    """

    def __init__(self, model: GPT, means: Means) -> None:
        self.model = model.eval().requires_grad_(False)
        self.means = means
        self.layout = Layout.of(model.config)

    @property
    def device(self) -> torch.device:
        return self.model.ln_f.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.ln_f.weight.dtype

    @contextmanager
    def cut(self, cut: Cut, gates: Tensor | None = None) -> Iterator[GPT]:
        """The model as the cut leaves it; its logits are not calibrated. ``gates`` may stand for its nodes."""
        with ExitStack() as hooks:
            if gates is None:
                hooks.enter_context(with_constants(self.model, cut.nodes, self.means))
                gates = cut.nodes.to(self.dtype)
            hooks.enter_context(with_nodes(self.model, gates, self.means))
            hooks.enter_context(without_edges(self.model, cut.removed, self.means))
            yield self.model

    def margins(self, pairs: Pairs, cut: Cut | None = None, gates: Tensor | None = None) -> Tensor:
        """Of the whole model, or of what a cut leaves, calibrated: (2N,)."""
        if cut is None:
            return margins(self.model, pairs)
        with self.cut(cut, gates) as model:
            return cut.calibration.margins(margins(model, pairs), pairs)

    @torch.no_grad()
    def loss(self, pairs: Pairs, cut: Cut | None = None) -> float:
        """Mean cross-entropy per sequence over the two candidates, in nats."""
        return task_loss(self.margins(pairs, cut)).item()

    @torch.no_grad()
    def accuracy(self, pairs: Pairs, cut: Cut | None = None) -> float:
        """Fraction of the sequences whose right token has the higher logit."""
        return accuracy(self.margins(pairs, cut))

    @torch.no_grad()
    def calibrated(self, pairs: Pairs, cut: Cut) -> tuple[float, Cut]:
        """The least loss that scaling and shifting the logits gives, and the cut that has it."""
        raw = self.margins(pairs, replace(cut, calibration=UNCALIBRATED))
        calibration = calibrate(raw, pairs)
        return task_loss(calibration.margins(raw, pairs)).item(), replace(cut, calibration=calibration)

    def edges(self, cut: Cut) -> list[EdgeGroup]:
        """The weights that are left between the nodes of a cut."""
        removed = {(group.matrix, *place) for group in cut.removed for place in group.places}
        return edges_without(edges_between(self.model, cut.nodes), removed)

    def all(self) -> Cut:
        """Nothing cut."""
        return Cut(torch.ones(self.layout.size, dtype=torch.bool, device=self.device))


@dataclass(frozen=True)
class Trial:
    """One learned mask: its settings, and the size and loss of its circuit; None where none is good enough."""

    settings: MaskSettings
    nodes: int | None
    loss: float | None


@dataclass(frozen=True)
class Found:
    """A circuit, and how it was found.

    Attributes:
        cut: the circuit.
        nodes_only: before edges were cut: what the paper calls a circuit.
        learned_nodes: those of the best mask, before it was cleaned.
        trials: all masks that were learned.
    """

    cut: Cut
    nodes_only: Cut
    learned_nodes: int
    trials: tuple[Trial, ...]


def find_cut(
    subject: Subject,
    pairs: Pairs,
    *,
    target: float = TARGET,
    budget: int = 8,
    settings: MaskSettings = CENTRES,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Found | None:
    """The smallest circuit found that does a task; None where none does.

    Args:
        subject: the model and its means.
        pairs: to prune on; a quarter of them is kept from the search and only decides whether its circuit is good
            enough, or has to be larger.
        target: task loss in nats that the circuit may have on pairs that it was not made from.
        budget: masks that are learned, the first with ``settings``, the others around them.
        seed: of everything random.
        on_step: called after each step of learning.

    Raises:
        ValueError: too few pairs to keep one from the search.
    """
    if len(pairs) < UNSEEN:
        raise ValueError(f"pairs must be at least {UNSEEN}, got {len(pairs)}")
    unseen, pairs = pairs[::UNSEEN], pairs[torch.arange(len(pairs)) % UNSEEN != 0]
    trials, scores = learn_masks(subject, pairs, target, budget, settings, seed, on_step)
    if scores is None:
        return None
    found: Found | None = None
    for round_ in range(ROUNDS):
        tighter = TIGHTER**round_ * target
        best = smallest_prefix(subject, pairs, scores, STAGES[0] * tighter)
        if best is None:  # not even the whole model is so good
            break
        nodes_only, cut = refine(subject, pairs, best, tighter)
        found = Found(cut, nodes_only, best.node_count, tuple(trials))
        if subject.loss(unseen, cut) <= target:
            break
    return found


def learn_masks(
    subject: Subject,
    pairs: Pairs,
    target: float,
    budget: int,
    settings: MaskSettings,
    seed: int,
    on_step: Callable[[], None],
) -> tuple[list[Trial], Tensor | None]:
    """``budget`` masks, and the scores of the one with the fewest nodes; None where none is good enough."""
    trials: list[Trial] = []
    fewest: tuple[int, Tensor] | None = None

    def objective(trial: Any) -> float:
        nonlocal fewest
        tried = settings
        for name, factor in SPREAD.items():
            centre = getattr(settings, name)
            number = trial.suggest_float(name, centre / factor, centre * factor, log=True)
            tried = replace(tried, **{name: number})  # type: ignore[arg-type]
        scores = node_scores(subject, pairs, tried, seed + trial.number, on_step)
        cut = smallest_prefix(subject, pairs, scores, STAGES[0] * target)
        loss = None if cut is None else subject.loss(pairs, cut)
        trials.append(Trial(tried, None if cut is None else cut.node_count, loss))
        if cut is None:
            return float(subject.layout.size)
        if fewest is None or cut.node_count < fewest[0]:
            fewest = cut.node_count, scores
        return float(cut.node_count)

    import optuna  # of the extra "circuits"; nothing else here needs it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({name: getattr(settings, name) for name in SPREAD})
    study.optimize(objective, n_trials=budget)
    return trials, None if fewest is None else fewest[1]


def node_scores(
    subject: Subject, pairs: Pairs, settings: MaskSettings, seed: int, on_step: Callable[[], None] = lambda: None
) -> Tensor:
    """Learned scores of all nodes, (nodes of the model,)."""
    everything = subject.all()

    def loss_of(gates: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * settings.steps + step)
        batch = pairs[torch.randperm(len(pairs), generator=generator)[: settings.batch]]
        return task_loss(subject.margins(batch, everything, gates))

    size, options = subject.layout.size, {"dtype": subject.dtype, "device": subject.device}
    return learn_scores(loss_of, size, settings, seed, on_step=on_step, **options)  # type: ignore[arg-type]


def smallest_prefix(subject: Subject, pairs: Pairs, scores: Tensor, allowed: float) -> Cut | None:
    """The fewest nodes of highest score that meet a loss, by bisection; None where all of them together do not."""

    def first(k: int) -> tuple[float, Cut]:
        return subject.calibrated(pairs, first_nodes(scores, k))

    high = int((scores > 0).sum())  # a mask that was learned does better than everything
    loss, best = first(high)
    if loss > allowed:
        high = len(scores)
        loss, best = first(high)
    if loss > allowed:
        return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        loss, cut = first(middle)
        if loss <= allowed:
            high, best = middle, cut
        else:
            low = middle
    return best


def first_nodes(scores: Tensor, k: int) -> Cut:
    """The ``k`` nodes of highest score."""
    nodes = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    nodes[scores.argsort(descending=True, stable=True)[:k]] = True
    return Cut(nodes)


def refine(subject: Subject, pairs: Pairs, cut: Cut, target: float) -> tuple[Cut, Cut]:
    """Drop nodes; then edges, and nodes that have become useless: both cuts, calibrated, each within its share."""
    of_nodes, of_edges, of_useless = (share * target for share in STAGES)
    nodes_only = _drop_nodes(subject, pairs, cut, of_nodes)
    cut = _drop_nodes(subject, pairs, _drop_edges(subject, pairs, nodes_only, of_edges), of_useless)
    return subject.calibrated(pairs, nodes_only)[1], subject.calibrated(pairs, cut)[1]


def _drop_nodes(subject: Subject, pairs: Pairs, cut: Cut, allowed: float) -> Cut:
    def without(dropped: Sequence[int]) -> Cut:
        nodes = cut.nodes.clone()
        nodes[list(dropped)] = False
        removed = [group[nodes[group.sources] & nodes[group.targets]] for group in cut.removed]
        return replace(cut, nodes=nodes, removed=tuple(group for group in removed if len(group)))

    nodes = cut.nodes.nonzero()[:, 0]
    order = nodes[node_effects(subject, pairs, cut)[nodes].argsort(stable=True)].tolist()
    return without(_dispensable(order, lambda dropped: _meets(subject, pairs, without(dropped), allowed)))


def _drop_edges(subject: Subject, pairs: Pairs, cut: Cut, allowed: float) -> Cut:
    groups = subject.edges(cut)
    where = [(g, e) for g, group in enumerate(groups) for e in range(len(group))]

    def without(dropped: Sequence[int]) -> Cut:
        gone = [torch.zeros(len(group), dtype=torch.bool, device=subject.device) for group in groups]
        for edge in dropped:
            g, e = where[edge]
            gone[g][e] = True
        removed = tuple(group[mask] for group, mask in zip(groups, gone, strict=True) if mask.any())
        return replace(cut, removed=(*cut.removed, *removed))

    effects = edge_effects(subject, pairs, cut, groups)
    order = torch.cat(effects).argsort(stable=True).tolist() if effects else []
    return without(_dispensable(order, lambda dropped: _meets(subject, pairs, without(dropped), allowed)))


def _meets(subject: Subject, pairs: Pairs, cut: Cut, allowed: float) -> bool:
    """Whether a cut has at most the loss allowed; one that is clearly worse on a few pairs is not tried on all."""
    if len(pairs) > FEW_PAIRS and subject.calibrated(pairs[:FEW_PAIRS], cut)[0] > CLEARLY_WORSE * allowed:
        return False
    return subject.calibrated(pairs, cut)[0] <= allowed


def _dispensable(order: Sequence[int], is_good: Callable[[Sequence[int]], bool]) -> list[int]:
    """Items that can be left out together: tried in the given order, in chunks that get smaller down to single ones."""
    dropped: list[int] = []
    left = list(order)
    chunk = max(1, len(left) // FIRST_CHUNKS)
    while left:
        needed: list[int] = []
        for start in range(0, len(left), chunk):
            part = left[start : start + chunk]
            if is_good([*dropped, *part]):
                dropped += part
            else:
                needed += part
        if chunk == 1:
            break
        left, chunk = needed, max(1, chunk // 4)
    return dropped


def node_effects(subject: Subject, pairs: Pairs, cut: Cut) -> Tensor:
    """First-order estimate of how much the loss rises when a node is cut: (nodes of the model,)."""
    gates = cut.nodes.to(subject.dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(task_loss(subject.margins(pairs, cut, gates)), gates)
    return -gradient


def edge_effects(subject: Subject, pairs: Pairs, cut: Cut, groups: Sequence[EdgeGroup]) -> list[Tensor]:
    """The same for edges of the cut, (E,) for each group."""
    if not groups:
        return []
    shares = [torch.zeros_like(group.weights).requires_grad_() for group in groups]
    with without_edges(subject.model, groups, subject.means, shares):
        return list(torch.autograd.grad(task_loss(subject.margins(pairs, cut)), shares))
