"""Sparse mode where a dense matrix would not fit: time and memory of training steps against the nonzeros."""

import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

from ..models import GPT, GPTConfig
from ..nn import SparseWeight
from ..optim import SparseAdamW, param_groups

D_HEAD = 16


@dataclass(frozen=True)
class Scale:
    """A model of random nonzeros, and how many tokens it sees per step."""

    d_model: int
    n_layer: int
    density: float
    floor: int = 4
    tokens: int = 256
    vocab: int = 512


@dataclass(frozen=True)
class ScaleOutcome:
    """Seconds are those of the median step, without the refreshes; memory is the most that the process had."""

    dense_weights: int
    nnz: int
    active: int
    losses: list[float]
    step_seconds: float
    refresh_seconds: float
    build_seconds: float
    peak_bytes: int


def run(scale: Scale, tokens: np.ndarray, steps: int, lr: float, refresh_every: int) -> ScaleOutcome:
    """Train on the beginning of ``tokens``, in sparse mode from the first step, in this process."""
    started = time.perf_counter()
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=scale.tokens,
        vocab_size=scale.vocab,
        n_layer=scale.n_layer,
        d_head=D_HEAD,
        d_model=scale.d_model,
    )
    embedding_density = min(1.0, scale.density * scale.d_model / 256)
    model = GPT(config, density=scale.density, embedding_density=embedding_density, floor=scale.floor)
    optimizer = SparseAdamW(param_groups(model), lr, "sparse", candidates=1.0, refresh_every=refresh_every)
    built = time.perf_counter() - started
    text = torch.from_numpy(tokens[: scale.tokens + 1].astype(np.int64)).unsqueeze(0)
    losses, seconds = [], []
    for _ in range(steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = model.loss(text[:, :-1], text[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    weights = [m for m in model.modules() if isinstance(m, SparseWeight)]
    refreshing = [s for i, s in enumerate(seconds) if i % refresh_every == 0]
    others = [s for i, s in enumerate(seconds) if i % refresh_every]
    return ScaleOutcome(
        dense_weights=sum(w.shape[0] * w.shape[1] for w in weights),
        nnz=sum(w.nnz for w in weights),
        active=sum(len(w.active) for w in weights),
        losses=losses,
        step_seconds=float(np.median(others)),
        refresh_seconds=float(np.median(refreshing) - np.median(others)),
        build_seconds=built,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
