"""The study of circuits: what it compares, and how sure it is."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "circuits"))
from planted import quote

from sparsekern.bench.circuits import MODELS, SPARSE, able_tasks, circuit_size, ratio_of_means
from sparsekern.circuits import Task, TaskError
from sparsekern.recipe import PRESETS


def test_the_ratio_is_the_geometric_mean_over_tasks() -> None:
    ratio, low, high = ratio_of_means([(10, 160)] * 5)
    assert (ratio, low, high) == pytest.approx((16, 16, 16))
    pairs = [(1, math.exp(x)) for x in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)]
    ratio, low, high = ratio_of_means(pairs)
    assert ratio == pytest.approx(math.exp(4))
    error = torch.arange(9.0).std(correction=0).item() / 3  # of a mean of nine, resampled
    assert math.log(low) == pytest.approx(4 - 1.96 * error, abs=0.15)
    assert math.log(high) == pytest.approx(4 + 1.96 * error, abs=0.15)
    assert ratio_of_means([(0, 8)])[0] == pytest.approx(8)  # an empty circuit counts as one edge


def test_the_models_differ_in_sparsity_and_width_alone() -> None:
    assert MODELS[SPARSE] == PRESETS["circuits"]
    for name, config in MODELS.items():
        assert (config.steps, config.batch, config.sources, config.vocab_size) == (
            PRESETS["circuits"].steps,
            PRESETS["circuits"].batch,
            PRESETS["circuits"].sources,
            PRESETS["circuits"].vocab_size,
        )
        if name != SPARSE:
            assert (config.density, config.target_embedding_density, config.afrac) == (1.0, 1.0, None)


def test_sizes_and_able_tasks_of_a_planted_model() -> None:
    planted = quote()

    def task_of(name: str) -> Task:
        if name == "unknown":
            raise TaskError("no tokens")
        pairs = planted.test if name == "quote" else planted.test.with_shuffled_labels(0)
        return Task(name, "", "", planted.train, pairs, (("", ""), ("", "")))

    bench = SimpleNamespace(subject=planted.subject, task=task_of)
    assert able_tasks([bench, bench], ["quote", "shuffled", "unknown"]) == {"quote": [1.0, 1.0]}
    size = circuit_size(bench, "quote", 0.15)
    assert (size.nodes, size.edges) == (7, 4)
    assert size.nodes_before >= 7
    assert size.edges_before >= 4
    assert size.test_loss < 0.01
