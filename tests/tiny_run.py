"""A corpus and a training configuration so small that a run takes a fraction of a second."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from safetensors.torch import load_file

from sparsekern.recipe import TrainConfig
from sparsekern.run_folder import read_metrics
from sparsekern.train import Step

TINY = TrainConfig(
    vocab_size=300,
    d_model=32,
    n_layer=1,
    d_head=8,
    context=16,
    batch=4,
    steps=12,
    density=0.25,
    candidates=1.0,  # by default everything would be active
    anneal_end=0.5,
    eval_every=5,
    eval_windows=4,
    save_every=3,
)


def write_sources(folder: Path) -> Path:
    """150 small Python files, each different, the same in every run."""
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "total", "index", "value"]
    folder.mkdir(parents=True)
    for i in range(150):
        a, b, c = rng.sample(words, 3)
        lines = [
            f"def {a}_{i}({b}, {c}=None):",
            f"    {a} = {b} + {i}",
            f"    return [{a}, {c}]",
            f"print({a}_{i}({i}))",
        ]
        (folder / f"{i}.py").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def corpus(folder: Path) -> Iterator[Path]:
    """Sources below ``folder``, and a cache for what is made of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # which takes seconds to fill again
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield write_sources(folder / "sources")


def tiny(sources: Path, **changes: Any) -> TrainConfig:
    return replace(TINY, sources=(str(sources),), **changes)


def losses(steps: Iterable[Step]) -> list[tuple[int, float, float | None]]:
    """What of a run must be repeatable to the last bit."""
    return [(step.step, step.loss, step.held_out) for step in steps]


def logged(folder: Path) -> list[tuple[int, float, float | None]]:
    """The same of the metrics in a run folder."""
    return losses(Step(**line) for line in read_metrics(folder))


def tensors(path: Path) -> dict[str, list[Any]]:
    """All numbers of a checkpoint."""
    return {name: t.tolist() for name, t in load_file(path).items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
