"""Whole training runs to be compared: which settings, which methods, and how one of them is run."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..models import GPT
from ..models.start import floor_of
from ..nn import BlockSparseWeight, SparseLinear
from ..optim import SparseAdamW
from ..recipe import TrainConfig
from ..run_folder import CONFIG, LAST, METRICS
from ..train import Trainer
from . import rivals

# Small transformers on the standard library, trained long enough for rules to differ; AbsTopK and floors as published.
_COMMON = TrainConfig(
    vocab_size=512,
    n_layer=2,
    bigram="counts",
    context=64,
    batch=16,
    steps=1000,
    warmup=0.02,
    anneal_end=0.2,
    min_alive=2,
    eval_windows=512,
    eval_every=100_000,
    save_every=100_000,
    candidates=1.0,  # both from before the studies that led to what is the default now
    refresh_every=60,
)
SETTINGS: Mapping[str, TrainConfig] = {
    "256 wide, 2 %": replace(_COMMON, d_model=256, density=0.02, lr=0.06),
    "256 wide, 1 %": replace(_COMMON, d_model=256, density=0.01, lr=0.03),
    "512 wide, 0.5 %": replace(_COMMON, d_model=512, density=0.005, lr=0.03),
}
# Dense models without AbsTopK, as small and as short as may do.
DENSE: Mapping[str, TrainConfig] = {
    f"dense, {width} wide, {steps} steps": replace(
        _COMMON, d_model=width, steps=steps, density=1.0, afrac=None, min_alive=0
    )
    for width in (32, 64, 128, 256)
    for steps in (25, 50, 100, 200, 400, 800)
}

# As sparse as floors allow for blocks of 32.
BLOCKS: Mapping[str, TrainConfig] = {
    f"512 wide, 10 %, rate {lr}": replace(_COMMON, d_model=512, steps=600, density=0.1, lr=lr) for lr in (0.06, 0.03)
}


@dataclass(frozen=True)
class Method:
    """How a run differs from exact mode.

    Attributes:
        changes: to the configuration.
        optimizer: its class, and attributes of it.
        branches_at: go on from the exact run of the same setting and seed: at the "end-of-anneal" or a "density".
        block: side of the blocks that the matrices consist of.
    """

    changes: Mapping[str, Any]
    optimizer: type[SparseAdamW] = SparseAdamW
    attributes: Mapping[str, Any] | None = None
    branches_at: str | None = None
    block: int | None = None


def _sparse(optimizer: type[SparseAdamW] = SparseAdamW, **changes: Any) -> Method:
    attributes = changes.pop("attributes", None)
    return Method({"mode": "sparse", **changes}, optimizer, attributes, changes.get("switch", "end-of-anneal"))


SHIPPED = "sparse, 4 candidates, refresh 20"  # what `sparsekern train` does
METHODS: Mapping[str, Method] = {
    "exact": Method({"mode": "exact"}),
    "exact, linear anneal": Method({"mode": "exact", "anneal": "linear"}),
    "exact, geometric anneal": Method({"mode": "exact", "anneal": "geometric"}),
    "exact, published anneal": Method({"mode": "exact", "anneal": "linear", "anneal_start": 0.01, "anneal_end": 0.5}),
    "sparse": _sparse(),
    "sparse from 10 %": _sparse(switch="density"),
    "sparse, never dense": Method({"mode": "sparse", "switch": "never-dense"}),
    **{f"exact, blocks of {side}": Method({"mode": "exact"}, block=side) for side in (4, 16, 32)},
    "frozen mask": _sparse(rivals.FrozenAdamW),
    **{
        f"{name} {fraction} every {every}": _sparse(
            kind, attributes={"fraction": fraction, "update_every": every, "candidates": 0.0}
        )
        for name, kind in (("SET", rivals.SetAdamW), ("RigL", rivals.RigLAdamW))
        for fraction, every in ((0.1, 25), (0.02, 25), (0.02, 100))
    },
    "sparse from 10 %, 4 candidates, refresh 20": _sparse(switch="density", candidates=4.0, refresh_every=20),
    "sparse, never dense, 4 candidates, refresh 20": Method(
        {"mode": "sparse", "switch": "never-dense", "candidates": 4.0, "refresh_every": 20}
    ),
    "sparse, gradients off the support every 4": Method({"mode": "sparse"}, rivals.LazyAdamW),
    **{
        f"sparse, never dense, rate {rate}": Method({"mode": "sparse", "switch": "never-dense", "lr": rate})
        for rate in (0.03, 0.12)
    },
    "sparse, bf16": _sparse(dtype="bf16"),
    "sparse, 2 candidates": _sparse(candidates=2.0),
    "sparse, 4 candidates": _sparse(candidates=4.0),
    "sparse, refresh 20": _sparse(refresh_every=20),
    "sparse, refresh 20, beta1 0.9": _sparse(refresh_every=20, candidate_beta1=0.9),
    SHIPPED: _sparse(candidates=4.0, refresh_every=20),
    "true norm": _sparse(rivals.OracleAdamW),
    "sketch": _sparse(rivals.SketchAdamW),
    "sketch every 10": _sparse(rivals.SparseSketchAdamW),
    "sketch, averaged": _sparse(rivals.SmoothSketchAdamW),
    "norm of the active": _sparse(rivals.SupportNormAdamW),
}


@dataclass(frozen=True)
class Outcome:
    held_out: float
    train: float
    seconds: float
    steps_taken: int


class _StudyTrainer(Trainer):
    method = METHODS["exact"]

    def _build_model(self, resume: bool) -> GPT:
        model = super()._build_model(resume)
        if self.method.block is not None:
            use_blocks_(model, self.method.block)
        return model

    def _build_optimizer(self, kind: type[SparseAdamW] = SparseAdamW) -> SparseAdamW:
        optimizer = super()._build_optimizer(self.method.optimizer)
        for name, value in {"model": self.model, "steps": self.config.steps, **(self.method.attributes or {})}.items():
            setattr(optimizer, name, value)
        return optimizer


def use_blocks_(model: GPT, side: int) -> None:
    """Let the matrices of a dense model, with their weights, consist of blocks of any side."""
    for layer in [m for m in model.blocks.modules() if isinstance(m, SparseLinear)]:
        old = layer.weight
        layer.weight = BlockSparseWeight.from_master(old.master, side, floor=floor_of(old.floor, side), axis=old.axis)


def branch_step(config: TrainConfig, at: str) -> int:
    """Steps done when the exact run is to be left: the next one switches."""
    config = replace(config, mode="sparse", switch=at)
    schedule = config.schedule(config.density)
    densities = (schedule.density(t, config.steps, config.density) for t in range(config.steps))
    return next(t for t, density in enumerate(densities) if config.is_sparse_after(density))


def run(config: TrainConfig, method: Method, scratch: Path, trunk: Path) -> Outcome:
    """One run in the folder ``scratch``. The exact run of a setting and seed leaves checkpoints in ``trunk``; methods
    that branch off find them there."""
    config = replace(config, **method.changes)

    class _Trainer(_StudyTrainer):
        pass

    _Trainer.method = method
    shutil.rmtree(scratch, ignore_errors=True)
    if method.branches_at is None:
        trainer: Trainer = _Trainer(config, scratch)
    else:
        _branch(config, trunk / f"{method.branches_at}.safetensors", scratch)
        trainer = _Trainer.resume(scratch)
    leaves = {branch_step(config, at): at for at in ("end-of-anneal", "density")} if method is METHODS["exact"] else {}
    first, started = trainer.step, time.perf_counter()
    losses, held_out = [], float("nan")
    for step in trainer.run():
        losses.append(step.loss)
        held_out = step.held_out if step.held_out is not None else held_out
        if step.step in leaves:
            trunk.mkdir(parents=True, exist_ok=True)
            trainer.save()
            shutil.copyfile(scratch / LAST, trunk / f"{leaves[step.step]}.safetensors")
    seconds = time.perf_counter() - started
    shutil.rmtree(scratch)
    return Outcome(held_out, sum(losses[-100:]) / len(losses[-100:]), seconds, trainer.step - first)


def _branch(config: TrainConfig, source: Path, scratch: Path) -> None:
    """Make ``scratch`` a run folder that stands where ``source`` was saved, but of ``config``."""
    scratch.mkdir(parents=True)
    shutil.copyfile(source, scratch / LAST)
    text = json.dumps(asdict(config))
    checkpoint.write_atomically(scratch / CONFIG, lambda to: to.write_text(text))
    (scratch / METRICS).write_text("")
