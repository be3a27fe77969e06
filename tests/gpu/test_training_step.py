"""What only a GPU can show: a training step never waits for the host, and a CUDA graph can hold it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sparsekern as sk
from sparsekern.train import set_budgets

CONFIG = sk.models.GPTConfig(block_size=16, vocab_size=50, n_layer=2, d_head=8, d_model=32)


class Training:
    """A small model in exact mode with static inputs."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.model = sk.models.GPT(CONFIG).cuda()
        self.model.set_floor(2)
        self.optimizer = sk.optim.SparseAdamW(sk.optim.param_groups(self.model), lr=0.01)
        set_budgets(self.model.matrices() + self.model.embeddings(), 0.1)
        self.dtype = dtype
        self.ids = torch.zeros(4, CONFIG.block_size, dtype=torch.int64, device="cuda")
        self.targets = torch.zeros_like(self.ids)

    def step(self) -> Tensor:
        with torch.autocast("cuda", self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model.loss(self.ids, self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def feed(self, batch: Tensor) -> None:
        self.ids.copy_(batch[:, :-1])
        self.targets.copy_(batch[:, 1:])


def batches(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randint(CONFIG.vocab_size, (4, CONFIG.block_size + 1), generator=generator)


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@every_dtype
def test_a_step_does_not_wait(dtype: torch.dtype) -> None:
    training = Training(dtype)
    for batch in batches(2):  # budgets change in the first step
        training.feed(batch)
        training.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    sk.ops.check_status()


@every_dtype
def test_a_graph_replays_the_step(dtype: torch.dtype) -> None:
    eager, captured = Training(dtype), Training(dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in batches(3):
            for training in (eager, captured):
                training.feed(batch)
                training.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = captured.step()
    for batch in batches(5):
        eager.feed(batch)
        captured.feed(batch)
        expected = eager.step()
        graph.replay()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    pairs = zip(eager.model.matrices(), captured.model.matrices(), strict=True)
    for a, b in pairs:
        assert torch.equal(a.col_indices, b.col_indices)
        assert torch.equal(a.perm, b.perm)


def test_nan_is_raised_when_asked() -> None:
    training = Training(torch.float32)
    training.step()
    weight = training.model.matrices()[0]
    weight.master.data[1, 2] = torch.nan
    training.step()
    with pytest.raises(RuntimeError, match="adamw_project_: weight must not contain NaN"):
        sk.ops.check_status()
    assert weight.master.isnan().any()
