"""Circuits that are known beforehand are found, nodes and edges, and nothing else."""

import pytest
from planted import Planted, binding, quote

from sparsekern.circuits import Circuit, accuracy, find_cut
from sparsekern.circuits.checks import best_of_size
from sparsekern.circuits.masks import CENTRES


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
