"""Exact mode against the recipe written once more in plain dense PyTorch, in float64 over 50 steps."""

import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from backends import gpu_backends
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.bench.masked_dense import masked_dense_copy
from sparsekern.nn import SparseEmbedding, SparseLinear
from sparsekern.ops import reference
from sparsekern.optim import Anneal, sharkfin, warmup_decay
from sparsekern.train import set_budgets

STEPS, LR, DENSITY, FLOOR = 50, 0.1, 0.08, 2
CONFIG = sk.models.GPTConfig(block_size=16, vocab_size=50, n_layer=2, d_head=8, d_model=32)


class StableAbsTopK(nn.Module):
    """AbsTopK by a stable sort, so that ties are decided as the library promises."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return reference.abs_topk(x, self.k)


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(CONFIG.vocab_size, (4, CONFIG.block_size + 1), generator=generator, device="cpu")
        tokens = tokens.to(torch.get_default_device())
        tokens[:, 1::2] = (tokens[:, 0:-1:2] * 7 + 3) % CONFIG.vocab_size  # something to learn
        yield tokens[:, :-1], tokens[:, 1:]


def schedule(step: int) -> tuple[float, float]:
    """Density and learning rate: dense at first, so that both the dense and the sparse kernels take part."""
    density = Anneal("geometric", 0.1, 0.6).density(step, STEPS, DENSITY)
    return density, LR * warmup_decay(step, STEPS, 0.1) * sharkfin(density, DENSITY)


def make_model() -> sk.models.GPT:
    torch.manual_seed(0)
    model = sk.models.GPT(CONFIG).double()
    model.set_floor(FLOOR)
    return model


def train(
    model: sk.models.GPT, optimizer: sk.optim.SparseAdamW, data: Iterable[tuple[Tensor, Tensor]], budgets: bool = True
) -> list[float]:
    """Losses of a step per batch, on the schedule; without ``budgets`` only the learning rate follows it."""
    losses = []
    for step, (ids, targets) in enumerate(data):
        density, lr = schedule(step)
        if budgets:
            set_budgets(model.matrices() + model.embeddings(), density)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = model.loss(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def dense_counterpart(model: sk.models.GPT) -> sk.models.GPT:
    dense = masked_dense_copy(model)
    for name, module in model.named_modules():
        if isinstance(module, sk.nn.AbsTopK):
            dense.set_submodule(name, StableAbsTopK(module.k))
    return dense


def train_dense(model: sk.models.GPT, dense: sk.models.GPT, steps: int) -> list[float]:
    """The published step order, spelled out: RMS, Adam, projection, decay."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear | SparseEmbedding)}
    parameters = dict(dense.named_parameters())
    adam = torch.optim.Adam(parameters.values(), lr=LR, betas=(0.9, 0.95), eps=0.1)
    losses = []
    for step, (ids, targets) in enumerate(batches(steps)):
        density, lr = schedule(step)
        adam.param_groups[0]["lr"] = lr
        loss = dense.loss(ids, targets)
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            square = sum(float(p.grad.square().sum()) for p in parameters.values())
            rms = math.sqrt(square / sum(p.numel() for p in parameters.values()))
            for p in parameters.values():
                p.grad /= rms + 1e-5
            adam.step()
            for name, layer in layers.items():
                p = parameters[f"{name}.weight"]
                floored = ".attn." in name or ".mlp." in name
                axis = (1 if name.endswith("c_proj") else 0) if floored else None
                assert layer.weight.axis == axis
                reference.topk_project_(p, int(density * p.numel()), FLOOR if floored else 0, axis)
            for name, p in parameters.items():
                if p.dim() > 1 and name != "bigram_table":
                    p *= 1 - lr * 0.1
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backend", ["default", *gpu_backends()], indirect=True)
def test_exact_mode_equals_plain_dense_training(backend: str) -> None:
    steps = 10 if backend == "emulated" else STEPS  # slow, and the budgets change from the first step on
    model = make_model()
    dense = dense_counterpart(model)
    expected = train_dense(model, dense, steps)
    optimizer = sk.optim.SparseAdamW(sk.optim.param_groups(model), lr=LR, mode="exact")
    losses = train(model, optimizer, batches(steps))
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-9
    if steps == STEPS:
        assert losses[-1] < losses[0] - 0.5  # it did learn
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | SparseEmbedding):
            weight = dense.get_parameter(f"{name}.weight")
            assert torch.equal(module.weight.master != 0, weight != 0), name
            assert module.weight.nnz == int(schedule(steps - 1)[0] * weight.numel())
