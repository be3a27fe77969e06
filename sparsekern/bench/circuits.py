"""The study behind circuits: are those of a sparse model smaller than those of a dense one that is as good?"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..circuits import TaskError, find_cut
from ..circuits.nodes import count_edges
from ..circuits.workbench import Workbench
from ..recipe import PRESETS, TrainConfig
from ..train import Trainer

SPARSE = "sparse"
# The first is the preset; of the others the one whose held-out loss is closest to it is compared.
MODELS: Mapping[str, TrainConfig] = {
    SPARSE: PRESETS["circuits"],
    **{
        f"dense, {width} wide": replace(
            PRESETS["circuits"],
            d_model=width,
            density=1.0,
            embedding_density=1.0,
            afrac=None,
            min_alive=0,
            mode="exact",
            lr=0.01,
        )
        for width in (32, 48, 64, 96, 128)
    },
}
ABLE = 0.9  # accuracy of both models in a task that is compared
TARGETS = (0.15, 0.05, 0.3)  # nats; the published one first
BUDGET = 3
RESAMPLES = 10_000


@dataclass(frozen=True)
class Size:
    """A circuit of the study; edges also as the paper counts them, before any was cut."""

    nodes: int
    edges: int
    nodes_before: int
    edges_before: int
    test_loss: float


def train(name: str, folder: Path) -> float:
    """Train a model to the end, or go on where it stopped; returns its held-out loss in nats per token."""
    trainer = Trainer.resume(folder) if (folder / "last.safetensors").exists() else Trainer(MODELS[name], folder)
    for _ in trainer.run():
        pass
    return trainer.evaluate()


def able_tasks(benches: Sequence[Workbench], names: Sequence[str]) -> dict[str, list[float]]:
    """The tasks that all models can do -> accuracy of each."""
    able = {}
    for name in names:
        try:
            right = [bench.subject.accuracy(bench.task(name).test) for bench in benches]
        except TaskError:
            continue
        if min(right) >= ABLE:
            able[name] = right
    return able


def circuit_size(bench: Workbench, name: str, target: float) -> Size | None:
    """The smallest circuit found for a task at a loss, or None."""
    task, subject = bench.task(name), bench.subject
    found = find_cut(subject, task.train, target=target, budget=BUDGET)
    if found is None:
        return None
    edges, before = (count_edges(subject.edges(cut)) for cut in (found.cut, found.nodes_only))
    nodes = found.cut.node_count, found.nodes_only.node_count
    return Size(nodes[0], edges, nodes[1], before, subject.loss(task.test, found.cut))


def ratio_of_means(pairs: Sequence[tuple[float, float]], seed: int = 0) -> tuple[float, float, float]:
    """Geometric mean of b / a over the tasks, with a 95 % bootstrap interval over tasks; empty circuits count as 1."""
    logs = [math.log(max(b, 1) / max(a, 1)) for a, b in pairs]
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(logs, k=len(logs))) / len(logs) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    return math.exp(sum(logs) / len(logs)), math.exp(low), math.exp(high)
