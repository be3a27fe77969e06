"""Everything that decides a training run, and presets from seconds to the published size."""

import json
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from .models import GPTConfig
from .models.config import GPTOptions
from .optim import GRADIENTS, Anneal

_CHOICES = {
    "positions": ("learned", "none"),
    "bigram": ("learned", "counts"),
    "gradients": GRADIENTS,
    "embedding_schedule": ("own", "published"),
    "biases": ("dense", "sparse"),
    "mode": ("exact", "sparse"),
    "switch": ("end-of-anneal", "density", "never-dense"),
    "dtype": ("f32", "bf16"),
}
EMBEDDING_REFERENCE_WIDTH = 256  # the published recipe keeps d_model / 256 times the density in embeddings


@dataclass(frozen=True)
class TrainConfig(GPTOptions):
    """Everything that decides a run.

    Attributes:
        sources: files, folders or globs; empty means the running Python's standard library, "simple-python" made-up
            programs (see :mod:`sparsekern.data.simple_python`).
        n_layer: layers; the rest of the model is described in :class:`sparsekern.models.config.GPTOptions`.
        positions: "learned", or "none": those that are added stay at zero.
        bigram: "learned" as published, or "counts": the fixed log-probabilities of a smoothed count bigram, which a
            short run would spend most of its tokens on.
        context, batch: tokens per sequence and sequences per step.
        steps, lr, warmup, weight_decay: of the optimizer; ``lr`` holds at the target density.
        gradients: "normalised" to a root mean square of 1 before every step, or "clipped" where it is above 1.
        density: of the matrices at the end; ``embedding_density`` None means the published ``density * d_model / 256``.
        embedding_schedule: "own": the embeddings' density falls from 1 to its target as that of the matrices does, or
            "published": it is that of the matrices times the ratio of the targets, 1 at most, which keeps embeddings
            dense until late.
        biases: "dense", or "sparse": after every step they keep their largest entries, at the embeddings' density.
        anneal, anneal_start, anneal_end: shape and window of the density (see :class:`sparsekern.optim.Anneal`).
        min_alive: nonzeros that every neuron keeps.
        mode: "exact", the published rule to the end; or "sparse", whose cost grows with the nonzeros (see
            :class:`sparsekern.optim.SparseAdamW`), from the step that ``switch`` says.
        switch: "end-of-anneal"; "density", once it is at most ``switch_density``; or "never-dense": sparse from the
            first step, with random positions at ``start_factor`` times the densities.
        candidates, refresh_every, candidate_beta1: of sparse mode.
        eval_every, eval_windows: steps between held-out evaluations, and their size in sequences.
        save_every: steps between checkpoints.
        dtype: of the activations: "f32", or "bf16" (autocast; weights, and on a CPU the residual stream, stay float32).
    """

    sources: tuple[str, ...] = ()
    n_layer: int = 4
    positions: str = "learned"
    bigram: str = "learned"
    context: int = 256
    batch: int = 16
    steps: int = 2000
    lr: float = 0.1
    warmup: float = 0.01
    weight_decay: float = 0.1
    gradients: str = "normalised"
    density: float = 0.02
    embedding_density: float | None = None
    embedding_schedule: str = "own"
    biases: str = "dense"
    anneal: str = "fast"
    anneal_start: float = 0.0
    anneal_end: float = 0.2
    min_alive: int = 4
    mode: str = "sparse"
    switch: str = "end-of-anneal"
    switch_density: float = 0.1
    start_factor: float = 20.0
    candidates: float = 4.0
    refresh_every: int = 20
    candidate_beta1: float = 0.97
    seed: int = 0
    eval_every: int = 100
    eval_windows: int = 64
    save_every: int = 200
    dtype: str = "f32"

    def __post_init__(self) -> None:
        for name in ("context", "batch", "steps", "eval_every", "eval_windows", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        if not 0 < self.target_embedding_density <= 1:
            raise ValueError(f"embedding_density must be in (0, 1], got {self.embedding_density}")
        if self.min_alive < 0:
            raise ValueError(f"min_alive must not be negative, got {self.min_alive}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.positions == "none" and self.d_pos_emb is not None:
            raise ValueError(f"positions must be learned where d_pos_emb concatenates them, got {self.positions!r}")
        if not 0 < self.switch_density <= 1:
            raise ValueError(f"switch_density must be in (0, 1], got {self.switch_density}")
        if not self.start_factor >= 1:
            raise ValueError(f"start_factor must be at least 1, got {self.start_factor}")
        self.schedule(self.density), self.model  # these check themselves

    @property
    def model(self) -> GPTConfig:
        same = {f.name: getattr(self, f.name) for f in fields(GPTOptions)}
        table = self.bigram == "learned"
        return GPTConfig(block_size=self.context, n_layer=self.n_layer, learnable_bigram_table=table, **same)

    @property
    def is_never_dense(self) -> bool:
        return self.mode == "sparse" and self.switch == "never-dense"

    def schedule(self, target: float) -> Anneal:
        """Of the density of matrices whose last one is ``target``."""
        initial = min(1.0, self.start_factor * target) if self.is_never_dense else 1.0
        return Anneal(self.anneal, self.anneal_start, self.anneal_end, initial)

    def densities(self, step: int) -> tuple[float, float]:
        """Of the matrices and the embeddings at a step, counted from 0."""
        density = self.schedule(self.density).density(step, self.steps, self.density)
        target = self.target_embedding_density
        if self.embedding_schedule == "published":
            return density, min(1.0, density * target / self.density)
        return density, self.schedule(target).density(step, self.steps, target)

    def is_sparse_after(self, density: float) -> bool:
        """Whether a step at this density of the matrices is the last one in exact mode, at the latest."""
        at = self.density if self.switch == "end-of-anneal" else max(self.density, self.switch_density)
        return self.mode == "sparse" and density <= at

    @property
    def target_embedding_density(self) -> float:
        if self.embedding_density is not None:
            return self.embedding_density
        return min(1.0, self.density * self.d_model / EMBEDDING_REFERENCE_WIDTH)

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Raises ValueError for what is not the JSON of a configuration."""
        values = json.loads(text)
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise ValueError(f"not a training configuration: unknown {sorted(set(values) - known)}")
        return cls(**{**values, "sources": tuple(values.get("sources", ()))})


def read_setting(name: str, text: str) -> Any:
    """The value of a field of :class:`TrainConfig` as written on a command line; "none" for None.

    Raises:
        ValueError: no such field, or no such value.
    """
    hints = get_type_hints(TrainConfig)
    if name not in hints or name == "sources":
        raise ValueError(f"expected one of {', '.join(sorted(set(hints) - {'sources'}))}; got {name!r}")
    kinds = get_args(hints[name]) or (hints[name],)
    if NoneType in kinds and text == "none":
        return None
    try:
        return {"true": True, "false": False}[text] if bool in kinds else kinds[0](text)
    except (KeyError, ValueError):
        raise ValueError(f"{name}: expected {' or '.join(k.__name__ for k in kinds)}, got {text!r}") from None


# From seconds to the published size (Gao et al. 2025: 8 x 2048, 131,072 tokens a step, 32e9 tokens, one weight in 512).
PRESETS: dict[str, TrainConfig] = {
    "smoke": TrainConfig(
        d_model=64, n_layer=1, context=64, batch=8, steps=20, density=0.1, eval_every=10, eval_windows=8, save_every=10
    ),
    "demo": TrainConfig(
        d_model=640,
        n_layer=2,
        bigram="counts",
        context=64,
        batch=16,
        steps=800,
        lr=0.06,
        warmup=0.02,
        embedding_density=0.02,
        anneal_end=0.4,
    ),
    # A model whose circuits are worth reading after half an hour on two cores.
    "circuits": TrainConfig(
        sources=("simple-python",),
        vocab_size=1024,
        d_model=256,
        n_layer=4,
        bigram="counts",
        context=128,
        batch=16,
        steps=5000,
        lr=0.04,
        warmup=0.02,
        embedding_density=0.04,
        eval_every=500,
        save_every=500,
    ),
    "laptop": TrainConfig(d_model=512, n_layer=8, batch=32, steps=20_000, density=0.01, save_every=500),
    "paper": TrainConfig(
        d_model=2048,
        n_layer=8,
        batch=512,
        steps=244_140,
        lr=1.28e-2,
        density=1 / 512,
        anneal="linear",
        anneal_start=0.01,
        anneal_end=0.5,
        mode="exact",
        save_every=1000,
    ),
}
