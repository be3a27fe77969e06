"""Circuits that are known beforehand are found, nodes and edges, and nothing else."""

import pytest
import torch
from planted import Planted, binding, quote

from sparsekern.circuits import Circuit, Cut, Pairs, Subject, accuracy, find_cut, prune
from sparsekern.circuits.checks import best_of_size
from sparsekern.circuits.masks import CENTRES
from sparsekern.circuits.prune import Trial, first_nodes


@pytest.mark.parametrize("make", [quote, binding])
def test_planted_circuits_are_recovered_exactly(make) -> None:
    planted: Planted = make()
    subject = planted.subject
    assert accuracy(subject.margins(planted.test)) == 1.0
    found = find_cut(subject, planted.train, budget=2)
    assert found is not None
    circuit = Circuit(planted.model, subject.means, found.cut)
    assert {(node.location, node.channel) for node in circuit.nodes} == planted.nodes
    assert {(edge.matrix, edge.row, edge.column) for edge in circuit.edges} == planted.edges
    assert subject.loss(planted.test, found.cut) < 0.01
    assert found.learned_nodes > len(planted.nodes)  # cleaning had something to do


@pytest.mark.parametrize("make", [quote, binding])
def test_nothing_is_found_where_labels_are_shuffled(make) -> None:
    planted: Planted = make()
    subject, nodes = planted.subject, len(planted.nodes)
    cut = best_of_size(subject, planted.train.with_shuffled_labels(0), 4 * nodes, nodes, [CENTRES], 0)
    assert cut.node_count == nodes
    assert subject.loss(planted.test.with_shuffled_labels(1), cut) > 0.5


def test_too_few_pairs_are_refused() -> None:
    planted = quote()
    with pytest.raises(ValueError, match="pairs must be at least 4, got 3"):
        find_cut(planted.subject, planted.train[:3])


@pytest.mark.parametrize(
    ("losses", "tries"),
    [([0.1], 1), ([0.2, 0.16, 0.14], 3), ([0.5] * 9, prune.ROUNDS)],
    ids=["good at once", "good once it is larger", "never good"],
)
def test_pairs_kept_from_the_search_decide_how_much_is_dropped(
    losses: list[float], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = quote()
    subject, pairs, targets, judged = planted.subject, planted.train, [], []

    def refine(subject: Subject, pairs: Pairs, cut: Cut, target: float) -> tuple[Cut, Cut]:
        targets.append(target)
        assert len(pairs) == len(planted.train) * 3 // 4
        return cut, cut

    def loss(subject: Subject, pairs: Pairs, cut: Cut) -> float:
        judged.append(pairs)
        return losses[len(judged) - 1]

    monkeypatch.setattr(prune, "refine", refine)
    monkeypatch.setattr(prune, "smallest_prefix", lambda subject, pairs, scores, allowed: first_nodes(scores, 5))
    trial = Trial(CENTRES, 5, 0.0)
    monkeypatch.setattr(prune, "learn_masks", lambda *a, **k: ([trial], torch.zeros(subject.layout.size)))
    monkeypatch.setattr(Subject, "loss", loss)
    found = find_cut(subject, pairs, target=0.15)
    assert found is not None
    assert targets == pytest.approx([0.15 * prune.TIGHTER**i for i in range(tries)])
    rows = {tuple(row) for row in judged[0].ids.tolist()}
    assert len(judged[0]) == len(pairs) // 4
    assert rows <= {tuple(row) for row in pairs.ids.tolist()}
