"""``make demo``: train a weight-sparse transformer on Python's own source code, and show that it has learned.

Ends with a table and with a function that the model wrote; exits with 1 if the model did not clearly beat a smoothed
count bigram. The run stays in runs/make-demo.
"""

import copy
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import sparsekern as sk
from sparsekern.bench.masked_dense import MaskedDenseStep, masked_dense_copy
from sparsekern.bench.timer import take_turns
from sparsekern.cli import complete, train_with_progress
from sparsekern.data import Corpus, bigram_loss, held_out_batches, sample_batch
from sparsekern.models import GPT
from sparsekern.nn import SparseWeight
from sparsekern.recipe import PRESETS
from sparsekern.run_folder import load_model
from sparsekern.train import Trainer

FOLDER = Path("runs/make-demo")
WINDOWS = 256  # of held-out text, for the table
MARGIN = 0.15  # nats per token that the model must be better than the bigram
TIMED_STEPS = 7

console = Console()


@torch.no_grad()
def held_out_loss(model: GPT, corpus: Corpus) -> float:
    batches = list(held_out_batches(corpus.held_out, batch=16, context=model.config.block_size, count=WINDOWS))
    return sum(model.loss(ids, targets).item() * len(ids) for ids, targets in batches) / WINDOWS


def count_bigram_loss(corpus: Corpus, context: int, vocab_size: int) -> float:
    batches = held_out_batches(corpus.held_out, batch=WINDOWS, context=context, count=WINDOWS)
    ids, targets = (np.concatenate(parts) for parts in zip(*((i.numpy(), t.numpy()) for i, t in batches), strict=True))
    return bigram_loss(corpus.train, ids, targets, vocab_size)


def without_sparse_weights(model: GPT) -> GPT:
    zeroed = copy.deepcopy(model)
    for module in zeroed.modules():
        if isinstance(module, SparseWeight):
            torch.nn.init.zeros_(module.values)
    return zeroed


def step_times(trainer: Trainer) -> tuple[float, float]:
    """Median milliseconds of a training step, in turns: ours, and the same model as masked dense PyTorch."""
    config = trainer.config
    ids, targets = sample_batch(trainer.corpus.train, batch=config.batch, context=config.context, seed=1, step=0)
    dense = MaskedDenseStep(trainer.model, masked_dense_copy(trainer.model), lr=1e-4)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-4

    def sparse_step() -> torch.Tensor:
        loss = trainer.model.loss(ids, targets)
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
        return loss.detach()

    ours, theirs = sparse_step(), dense(ids, targets)
    assert abs(ours - theirs) < 1e-3, f"the two models disagree: {ours} and {theirs}"
    timings = take_turns({"ours": sparse_step, "masked dense": lambda: dense(ids, targets)}, TIMED_STEPS)
    return timings["ours"].median_ms, timings["masked dense"].median_ms


def main() -> None:
    sk.keep_freed_memory()
    started = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    trainer = Trainer(PRESETS["demo"], FOLDER)
    train_with_progress(trainer)
    if trainer.step < trainer.config.steps:
        sys.exit(130)
    trained = time.perf_counter() - started

    config, corpus, model = trainer.config, trainer.corpus, load_model(FOLDER)
    loss = held_out_loss(model, corpus)
    zeroed = held_out_loss(without_sparse_weights(model), corpus)
    bigram = count_bigram_loss(corpus, config.context, config.vocab_size)
    weights = [m for m in model.modules() if isinstance(m, SparseWeight)]
    nnz, size = sum(w.nnz for w in weights), sum(w.shape[0] * w.shape[1] for w in weights)
    ours, theirs = step_times(trainer)

    table = Table(title="A weight-sparse transformer on Python's standard library", show_header=False)
    table.add_row("held-out loss", f"{loss:.3f} nats per token")
    table.add_row("  smoothed count bigram", f"{bigram:.3f}  ({bigram - loss:+.3f})")
    table.add_row("  same model, sparse weights zeroed", f"{zeroed:.3f}  ({zeroed - loss:+.3f})")
    table.add_row("nonzero weights", f"{nnz:,} of {size:,}  (density {nnz / size:.2%})")
    table.add_row("training step", f"{ours:.0f} ms")
    table.add_row("  same model as masked dense PyTorch", f"{theirs:.0f} ms  ({theirs / ours:.1f} times as long)")
    table.add_row("corpus and training took", f"{trained:.0f} s")
    console.print(table)
    console.print("A function the model wrote:", style="bold")
    console.print(complete(FOLDER, "def read_file(path):", 80, temperature=0.5, seed=2), markup=False, highlight=False)
    if loss > min(bigram, zeroed) - MARGIN:
        sys.exit(f"the model is not {MARGIN} nats per token better than the bigram")


if __name__ == "__main__":
    main()
