"""A training step under a benchmark: the sparse GPT, in either mode, against the same as masked dense PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models import GPT, GPTConfig
from ..ops import check_status
from ..optim import SparseAdamW, param_groups
from .masked_dense import MaskedDenseStep, masked_dense_copy
from .measure import DENSE, DTYPES, Case, Problem, implementations

LR = 1e-4
MIN_ALIVE = 4  # as published; a small model's neurons have fewer
CONTEXT, VOCAB = 256, 2048


class SparseStep:
    """A step of :class:`sparsekern.optim.SparseAdamW`, in the mode that the model's weights are for."""

    def __init__(self, model: GPT, dtype: torch.dtype, mode: str = "exact", **settings: Any) -> None:
        self.model = model
        self.optimizer = SparseAdamW(param_groups(model), lr=LR, mode=mode, **settings)
        self.dtype = dtype

    def __call__(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Forward, backward and update; returns the loss before it."""
        loss = self.gradients(ids, targets)
        self.update()
        return loss

    def gradients(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward; returns the loss."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.model.loss(ids, targets)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        self.optimizer.step()


def build_training_step(case: Case, device: torch.device, mode: str = "exact") -> Problem:
    """Forward, backward and update of a GPT of width N with K layers, all its matrices at the density."""
    torch.manual_seed(0)
    dtype = DTYPES[case.dtype]
    context = min(CONTEXT, case.tokens)
    config = GPTConfig(block_size=context, vocab_size=VOCAB, d_model=case.n, n_layer=case.k)
    model = GPT(config, density=case.density, floor=min(MIN_ALIVE, int(case.density * case.n))).to(device)
    dense = MaskedDenseStep(model, masked_dense_copy(model), lr=LR, dtype=dtype)
    sparse = SparseStep(model, dtype, mode)
    ids = torch.randint(VOCAB, (case.tokens // context, context + 1), device=device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def with_gradients(step: Callable[[Tensor, Tensor], Tensor], parameters: list[Any]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            try:
                with torch.enable_grad():
                    return step(inputs, targets)
            except torch.OutOfMemoryError:
                for p in parameters:  # leave the memory to the other contender
                    p.grad = None
                raise

        return run

    (ours,) = list(implementations(device))[:1]
    contenders = {
        ours: with_gradients(sparse, list(model.parameters())),
        DENSE: with_gradients(dense, dense.parameters),
    }
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = float(dense.model.loss(inputs, targets))

    def check(loss: Tensor) -> None:
        """One step at this learning rate hardly changes the loss; the tests compare steps closely."""
        assert abs(float(loss) - expected) < 0.05, f"loss {float(loss)}, expected about {expected}"
        check_status()

    return Problem(contenders, check, baseline=DENSE)
