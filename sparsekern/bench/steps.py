"""How long the parts of a training step take, and how much memory its numbers need: sparse, exact, masked dense."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..models import GPT, GPTConfig
from ..nn import SparseWeight
from ..recipe import EMBEDDING_REFERENCE_WIDTH
from ..train import set_budgets
from .masked_dense import MaskedDenseStep, masked_dense_copy
from .training import MIN_ALIVE, SparseStep

OURS = ("sparsekern::", "GeneratedBackwardFor_sparsekern_")  # an op's kernel runs under either name
PARTS: Mapping[str, tuple[str, ...]] = {  # ops of the forward and backward pass, by how their names begin
    "AbsTopK": (*(f"{ours}abs_topk" for ours in OURS), "aten::topk", "aten::scatter", "aten::gather", "aten::sort"),
    "attention": (*(f"{ours}causal" for ours in OURS), "aten::_scaled_dot_product", "aten::_flash_attention"),
    "linears": (*OURS, "aten::addmm", "aten::mm", "aten::bmm", "aten::index_select", "aten::embedding"),
}

Step = SparseStep | MaskedDenseStep


@dataclass(frozen=True)
class Size:
    """A model, all its matrices of one density, and how many tokens a step sees."""

    d_model: int
    density: float
    n_layer: int = 8
    vocab: int = 2048
    context: int = 256
    tokens: int = 2048
    afrac: float | None = 0.25


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: what is in PARTS, the rest of forward and backward, and the update."""

    linears: float
    attention: float
    abs_topk: float
    rest: float
    update: float

    @property
    def total(self) -> float:
        return self.linears + self.attention + self.abs_topk + self.rest + self.update


def batch(size: Size) -> tuple[Tensor, Tensor]:
    """Random ids and targets."""
    shape = (size.tokens // size.context, size.context + 1)
    ids = torch.randint(size.vocab, shape, generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def make_model(size: Size, *, sparse: bool) -> GPT:
    """Random, at the density everywhere but in the embeddings, which have what is published."""
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=size.context,
        vocab_size=size.vocab,
        d_model=size.d_model,
        n_layer=size.n_layer,
        afrac=size.afrac,
    )
    embedding_density = min(1.0, size.density * size.d_model / EMBEDDING_REFERENCE_WIDTH)
    floor = min(MIN_ALIVE, int(size.density * size.d_model))
    model = GPT(config, density=size.density, embedding_density=embedding_density, floor=floor)
    if not sparse:
        for weight in weights_of(model):
            weight.to_master_()
    return model


def weights_of(model: nn.Module) -> list[SparseWeight]:
    return [m for m in model.modules() if isinstance(m, SparseWeight)]


def contenders(size: Size, names: Iterable[str]) -> dict[str, Step]:
    """ "sparse", "sparse bf16", the same with "1 candidate", "exact", "masked dense f32" and "masked dense bf16", which
    share the dense weights; or "dense"."""
    made: dict[str, Step] = {}
    for name in names:
        dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
        if name.startswith("sparse"):
            settings = {"candidates": 1.0} if "1 candidate" in name else {}
            made[name] = SparseStep(make_model(size, sparse=True), dtype, "sparse", **settings)
        elif name == "exact":
            made[name] = SparseStep(make_model(size, sparse=False), torch.float32)
        else:
            model = make_model(size, sparse=True)
            made[name] = step = MaskedDenseStep(model, masked_dense_copy(model), lr=1e-4, dtype=dtype)
            if name == "dense":
                step.projected.clear()
    return made


def timed(step: Step, ids: Tensor, targets: Tensor) -> StepTime:
    """One step, forward and backward under the profiler."""
    started = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step.gradients(ids, targets)
    both = time.perf_counter() - started
    own: dict[str, float] = {}
    for event in profile.key_averages():
        part = next((part for part, begins in PARTS.items() if event.key.startswith(begins)), None)
        if part is not None:
            own[part] = own.get(part, 0.0) + event.self_cpu_time_total / 1e6
    started = time.perf_counter()
    step.update()
    update = time.perf_counter() - started
    abs_topk, attention, linears = (own.get(part, 0.0) for part in PARTS)
    return StepTime(linears, attention, abs_topk, both - linears - attention - abs_topk, update)


def median(times: list[StepTime]) -> StepTime:
    """Of every part."""
    names = ("linears", "attention", "abs_topk", "rest", "update")
    return StepTime(**{name: float(np.median([getattr(t, name) for t in times])) for name in names})


def bytes_held(step: Step) -> int:
    """Of parameters, index arrays, gradients and optimizer state, without the bigram table; after a step."""
    model = step.model
    table = model.bigram_table
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    grads = [p.grad for p in model.parameters() if p.grad is not None and p is not table]
    optimizer = step.optimizer if isinstance(step, SparseStep) else step.adam
    state = [t for p, s in optimizer.state.items() if p is not table for t in s.values() if isinstance(t, Tensor)]
    held = [t for t in tensors.values() if t is not table] + grads + state
    return sum(t.numel() * t.itemsize for t in held)


def check_equal(steps: Mapping[str, Step], ids: Tensor, targets: Tensor) -> None:
    """Before anything is timed: from the same weights, all have the same loss."""
    losses = {name: float(step.gradients(ids, targets)) for name, step in steps.items()}
    spread = max(losses.values()) - min(losses.values())
    assert spread < 0.02, f"the contenders disagree: {losses}"


def release(step: Step) -> None:
    """Give its gradients' memory to the next contender."""
    for p in step.model.parameters():
        p.grad = None


def compare(size: Size, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of every part of the contenders, in turns; the slow dense bfloat16 one only once."""
    steps, (ids, targets) = contenders(size, names), batch(size)
    check_equal(steps, ids, targets)
    times: dict[str, list[StepTime]] = {name: [] for name in names}
    for step in steps.values():  # not timed: memory is new, and sparse mode draws its first candidates
        step(ids, targets)
        release(step)
    for done in range(rounds):
        for name, step in steps.items():
            if done == 0 or name != "masked dense bf16":
                times[name].append(timed(step, ids, targets))
                release(step)
    return {name: {**asdict(m := median(t)), "total": m.total} for name, t in times.items()}


def memory(size: Size, names: list[str]) -> dict[str, int]:
    """Bytes held by every contender after a step."""
    held = {}
    for name, step in contenders(size, names).items():
        ids, targets = batch(size)
        step(ids, targets)
        step.gradients(ids, targets)
        held[name] = bytes_held(step)
        release(step)
    return held


def refresh_seconds(size: Size) -> float:
    """What a refresh adds to a step of sparse mode."""
    step = SparseStep(make_model(size, sparse=True), torch.float32, "sparse")
    step.optimizer.refresh_every = 3
    ids, targets = batch(size)
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        step(ids, targets)
        seconds.append(time.perf_counter() - started)
    refreshing = seconds[3::3]  # the fourth and the seventh step
    others = [s for i, s in enumerate(seconds) if i % 3]
    return float(np.median(refreshing) - np.median(others))


def exact_along(size: Size, densities: list[float]) -> Iterator[tuple[float, float]]:
    """Seconds of a step of exact mode at falling densities, each the faster of two."""
    step = SparseStep(make_model(size, sparse=False), torch.float32)
    ids, targets = batch(size)
    for density in densities:
        set_budgets(weights_of(step.model), density)
        step(ids, targets)  # to this density
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            step(ids, targets)
            seconds.append(time.perf_counter() - started)
        yield density, min(seconds)
