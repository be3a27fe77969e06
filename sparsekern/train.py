"""Training of a weight-sparse GPT: the loop, and the run folder that it fills."""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint, distributed
from ._native import cpu_isa
from .data import Corpus, bigram_probabilities, held_out_batches, load_corpus, sample_batch
from .device import find_device, repeatable
from .models import GPT
from .nn import SparseLinear, SparseWeight
from .ops import check_status, topk_project_
from .optim import SparseAdamW, param_groups, sharkfin, warmup_decay
from .recipe import TrainConfig
from .run_folder import BEST, CONFIG, LAST, METRICS, PLOT, TOKENIZER, read_config, read_metrics

STEPS_PER_READ = {"cpu": 1, "cuda": 16}  # a GPU works ahead of the host, which waits for it only where it reads


class TrainingError(Exception):
    """Training cannot start or go on; the message says why."""


@dataclass(frozen=True)
class Step:
    """What one step gave; ``held_out`` where it was evaluated."""

    step: int
    loss: float
    lr: float
    density: float
    nnz: int
    tokens_per_second: float
    held_out: float | None = None


@dataclass(frozen=True)
class _Taken:
    """A step that was asked for; on a GPU its numbers may still be on their way."""

    step: int
    loss: Tensor
    gradient_rms: Tensor
    lr: float
    density: float
    nnz: int


class Trainer:
    """A run: its model, optimizer, data and folder. ``for step in trainer.run(): ...`` trains.

    Args:
        config: what to train.
        folder: the run folder; made if it does not exist.
        resume: go on from the folder's last checkpoint.
        device: "cpu", "cuda" or "cuda:1"; a run may go on on another one.

    Attributes:
        steps_per_read: steps after which losses are read, checked, logged and yielded, together; also read at every
            evaluation and checkpoint.

    Raises:
        TrainingError: the folder already holds another run, or none to resume.
        ValueError: a density too low for ``min_alive``, a corpus that does not fit, or no such device.
    """

    def __init__(self, config: TrainConfig, folder: Path, *, resume: bool = False, device: str = "cpu") -> None:
        self.config = config
        self.folder = folder
        self.device = find_device(distributed.local_device(device))
        distributed.start(self.device)
        self.is_first = distributed.rank() == 0  # of the processes that train together: the one that writes
        self.steps_per_read = STEPS_PER_READ[self.device.type]
        if not resume and (folder / LAST).exists():
            raise TrainingError(f"{folder} already holds a run: resume it, or choose another folder")
        with distributed.first_goes_first():
            self.corpus: Corpus = load_corpus(config.sources or None, vocab_size=config.vocab_size)
        self._check_corpus()
        if config.batch % distributed.world_size():
            raise ValueError(
                f"batch must be a multiple of the {distributed.world_size()} processes, got {config.batch}"
            )
        self.step = 0  # steps done
        self.model = self._build_model(resume)
        self._check_floor()
        self.model.to(self.device)
        if resume:
            checkpoint.load(folder / LAST, self.model)
        self.optimizer = self._build_optimizer()
        self._loss = distributed.parallel_loss(self.model)
        self._taken: list[_Taken] = []  # since numbers were last read
        self._started = 0.0  # when the first of them was
        self.saved = -1  # the step of the last checkpoint
        self.best = float("inf")
        self.stop_requested = False
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            self._restore()
        elif self.is_first:
            text = json.dumps(asdict(config), indent=2)
            checkpoint.write_atomically(folder / CONFIG, lambda to: to.write_text(text + "\n"))
            shutil.copyfile(self.corpus.folder / TOKENIZER, folder / TOKENIZER)
            (folder / METRICS).write_text("")

    @classmethod
    def resume(cls, folder: Path, *, device: str = "cpu") -> "Trainer":
        """The run in ``folder``, as its last checkpoint left it."""
        if not (folder / LAST).exists():
            raise TrainingError(f"{folder} holds no checkpoint to resume ({LAST} is missing)")
        try:
            config = read_config(folder)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        return cls(config, folder, resume=True, device=device)

    def _build_model(self, resume: bool) -> GPT:
        """As it starts; when resuming, empty where nothing dense may be allocated."""
        config = self.config
        torch.manual_seed(config.seed)
        density = embedding_density = None
        if config.is_never_dense:
            density, embedding_density = config.densities(self.step)
        model = GPT(
            config.model,
            density=0.0 if resume and density else density,
            embedding_density=0.0 if resume and density else embedding_density,
            floor=config.min_alive,
        )
        if config.bigram == "counts":
            count_bigrams_(model, self.corpus.train)
        if config.positions == "none":
            model.wpe.requires_grad_(False)
        return model

    def _build_optimizer(self, kind: type[SparseAdamW] = SparseAdamW) -> SparseAdamW:
        config = self.config
        is_sparse = any(w.form == "active" for w in self.sparse_weights) or config.is_never_dense
        return kind(
            param_groups(self.model),
            lr=config.lr,
            mode="sparse" if is_sparse else "exact",
            weight_decay=config.weight_decay,
            gradients=config.gradients,
            candidates=config.candidates,
            refresh_every=config.refresh_every,
            candidate_beta1=config.candidate_beta1,
            seed=config.seed,
        )

    # ---- the loop

    def run(self) -> Iterator[Step]:
        """Train to the end, or until ``stop_requested``; saves on the way and at the end.

        Raises:
            TrainingError: a tensor is no longer finite; the checkpoint before it is kept.
            CheckpointError: a checkpoint could not be written; the one before it is kept.
        """
        with open(self.folder / METRICS if self.is_first else os.devnull, "a", buffering=1) as metrics:
            while self.step < self.config.steps and not self._is_to_stop():
                self._train_step()
                if self._is_time_to_read():
                    yield from self._report(metrics)
            if self._taken:
                yield from self._report(metrics)
        if self.saved != self.step:
            self.save()

    def _train_step(self) -> None:
        if not self._taken:
            self._started = time.perf_counter()
        config = self.config
        density, lr = self._set_schedule()
        batch = sample_batch(
            self.corpus.train, batch=config.batch, context=config.context, seed=config.seed, step=self.step
        )
        share = slice(distributed.rank(), None, distributed.world_size())
        ids, targets = self._to_device(*(t[share] for t in batch))
        if config.dropout:  # the same after a resumption, another one in each process
            seed = np.random.SeedSequence((config.seed, self.step, distributed.rank()))
            torch.manual_seed(int(seed.generate_state(1)[0]))
        with repeatable(self.device):
            with self._autocast():
                loss = self._loss(ids, targets)
            self._require_finite(loss, ids)
            self.optimizer.zero_grad()
            loss.backward()
            try:
                self.optimizer.step()
            except RuntimeError as error:
                raise TrainingError(f"step {self.step + 1}: {self._first_nonfinite(ids) or error}") from error
            if config.biases == "sparse":
                project_biases_(self.model, config.densities(self.step)[1])
            if self.config.is_sparse_after(density) and self.optimizer.mode == "exact":
                self.optimizer.to_sparse_()
        self.step += 1
        nnz = sum(w.entries for w in self.sparse_weights)
        taken = distributed.mean(loss.detach()), self.optimizer.gradient_rms
        self._taken.append(_Taken(self.step, *taken, lr, self._density(), nnz))

    def _density(self) -> float:
        """Of the matrices; in sparse mode it follows the schedule in stages."""
        matrices = self.model.matrices()
        sizes = [w.shape[0] * w.shape[1] for w in matrices]
        return sum(w.nnz * size / w.positions for w, size in zip(matrices, sizes, strict=True)) / sum(sizes)

    def _is_to_stop(self) -> bool:
        if distributed.world_size() == 1:
            return self.stop_requested
        return not self._taken and distributed.anyone(self.stop_requested, self.device)  # asking waits for a GPU

    def _is_time_to_read(self) -> bool:
        return (
            len(self._taken) >= self.steps_per_read
            or self.step == self.config.steps
            or self.step % self.config.eval_every == 0
            or self.step % self.config.save_every == 0
        )

    def _report(self, metrics: TextIO) -> list[Step]:
        """Log and return the steps since the last time; evaluate and save where it is time for that."""
        steps = self._read()
        if self.is_first and (self.step % self.config.eval_every == 0 or self.step == self.config.steps):
            steps[-1] = replace(steps[-1], held_out=self.evaluate())
            self._keep_best(steps[-1])
        metrics.writelines(json.dumps(asdict(step)) + "\n" for step in steps)
        if self.step % self.config.save_every == 0:
            self.save()
        return steps

    def _read(self) -> list[Step]:
        """Wait for the steps taken, and check their numbers: those that were not checked on the way."""
        taken, self._taken = self._taken, []
        losses, gradient_rms = torch.stack([torch.stack((t.loss, t.gradient_rms)) for t in taken]).T.tolist()
        for t, *numbers in zip(taken, losses, gradient_rms, strict=True):
            if not all(map(math.isfinite, numbers)):
                raise TrainingError(f"step {t.step}: loss {numbers[0]}, root mean square of the gradient {numbers[1]}")
        try:
            check_status()
        except RuntimeError as error:
            raise TrainingError(f"step {self.step}: {error}") from error
        seconds = time.perf_counter() - self._started
        tokens_per_second = len(taken) * self.config.batch * self.config.context / seconds
        return [
            Step(t.step, loss, t.lr, t.density, t.nnz, tokens_per_second) for t, loss in zip(taken, losses, strict=True)
        ]

    def _keep_best(self, step: Step) -> None:
        """Save the model if it is the best one at the target density: a denser one may well have been better."""
        assert step.held_out is not None
        at_target = step.density <= self.config.density or step.step == self.config.steps
        if at_target and step.held_out < self.best:
            self.best = step.held_out
            checkpoint.save_weights(self.folder / BEST, self.model, self._meta())

    def _to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Copies for which the host does not wait."""
        if self.device.type == "cpu":
            return list(tensors)
        return [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bf16")

    @property
    def sparse_weights(self) -> list[SparseWeight]:
        return self.model.matrices() + self.model.embeddings()

    def _set_schedule(self) -> tuple[float, float]:
        """Learning rate and budgets of the coming step; returns the matrices' density and the learning rate."""
        config = self.config
        density, embedding_density = config.densities(self.step)
        lr = config.lr * warmup_decay(self.step, config.steps, config.warmup) * sharkfin(density, config.density)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        set_budgets(self.model.matrices(), density)
        set_budgets(self.model.embeddings(), embedding_density)
        return density, lr

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean held-out loss in nats per token, over the same windows every time."""
        config = self.config
        batches = held_out_batches(
            self.corpus.held_out, batch=config.batch, context=config.context, count=config.eval_windows
        )
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.eval()
        for batch in batches:
            ids, targets = self._to_device(*batch)
            with repeatable(self.device), self._autocast():
                total += self.model.loss(ids, targets).double() * len(ids)
        self.model.train()
        return total.item() / config.eval_windows

    # ---- safety

    def _check_corpus(self) -> None:
        for what, tokens in (("training", self.corpus.train), ("held-out", self.corpus.held_out)):
            if len(tokens) <= self.config.context:
                raise ValueError(f"context must be below the {len(tokens)} {what} tokens, got {self.config.context}")

    def _check_floor(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, SparseWeight) and module.floor:
                assert module.axis is not None
                needed = module.floor * module.grid[module.axis]
                budget = int(self.config.density * module.positions)
                if needed > budget:
                    raise ValueError(
                        f"density {self.config.density} leaves {name} {budget} {module.unit}, but min_alive="
                        f"{self.config.min_alive} needs {needed}: raise density or lower min_alive"
                    )

    def _require_finite(self, number: Tensor, ids: Tensor) -> None:
        if self.steps_per_read == 1 and not torch.isfinite(number):  # otherwise when it is read
            what = self._first_nonfinite(ids) or "a sum of finite numbers is not finite"
            raise TrainingError(f"step {self.step + 1}: {what}")

    def _first_nonfinite(self, ids: Tensor) -> str | None:
        with self._autocast():
            return first_nonfinite(self.model, ids)

    # ---- the folder

    def _meta(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": None if self.best == float("inf") else self.best,
            "corpus": self.corpus.folder.name,
            "model": asdict(self.config.model),
            **self._hardware(),
        }

    def _hardware(self) -> dict[str, Any]:
        """What the last digits of the losses depend on."""
        if self.device.type == "cuda":
            return {"device": torch.cuda.get_device_name(self.device)}
        return {"device": "cpu", "cpu_isa": cpu_isa(), "threads": torch.get_num_threads()}

    def save(self) -> None:
        """Write the last checkpoint, and draw the loss curve."""
        self.saved = self.step
        if not self.is_first:
            return
        checkpoint.save(self.folder / LAST, self.model, self.optimizer, self._meta())
        plot_losses(self.folder)

    def _restore(self) -> None:
        meta = checkpoint.load_optimizer(self.folder / LAST, self.model, self.optimizer)
        if meta["corpus"] != self.corpus.folder.name:
            raise TrainingError(
                f"the corpus has changed since the run began: {meta['corpus']} then, {self.corpus.folder.name} now"
            )
        for key, now in self._hardware().items():
            if meta.get(key, now) != now:
                warnings.warn(
                    f"the run used {key}={meta[key]}, now it is {now}: losses will differ in the last digits",
                    stacklevel=3,
                )
        self.step = meta["step"]
        self.best = float("inf") if meta["best"] is None else meta["best"]
        if not self.is_first:
            return
        done = [line for line in read_metrics(self.folder) if line["step"] <= self.step]
        text = "".join(json.dumps(line) + "\n" for line in done)
        checkpoint.write_atomically(self.folder / METRICS, lambda to: to.write_text(text))


@torch.no_grad()
def count_bigrams_(model: GPT, tokens: np.ndarray) -> None:
    """Set the bigram table to the log-probabilities of a smoothed count bigram of ``tokens``."""
    assert model.bigram_table is not None
    vocab = model.config.vocab_size
    first, second = np.divmod(np.arange(vocab * vocab), vocab)
    log = np.log(bigram_probabilities(tokens, first, second, vocab)).reshape(vocab, vocab)
    model.bigram_table.copy_(torch.from_numpy(log))


def set_budgets(weights: list[SparseWeight], density: float) -> None:
    """Let the next projection keep ``density`` of each weight, rounded down."""
    for weight in weights:
        weight.budget = int(density * weight.positions)


@torch.no_grad()
def project_biases_(model: nn.Module, density: float) -> None:
    """Keep the largest entries of every bias of a sparse layer, ``density`` of them rounded down, and zero the rest."""
    for layer in model.modules():
        if isinstance(layer, SparseLinear) and layer.bias is not None:
            topk_project_(layer.bias.view(1, -1), int(density * len(layer.bias)))


def first_nonfinite(model: nn.Module, ids: Tensor) -> str | None:
    """Names the first tensor that is not finite: a parameter, a gradient, or a module's output for ``ids``."""
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            return f"parameter {name} is not finite"
    for name, p in model.named_parameters():
        if p.grad is not None and not torch.isfinite(p.grad).all():
            return f"the gradient of {name} is not finite"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"the output of {name or 'the model'} is not finite")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found[0] if found else None


def plot_losses(folder: Path) -> None:
    """Draw ``loss.png``: training and held-out loss, and density, over the steps."""
    from matplotlib.figure import Figure

    steps = read_metrics(folder)
    held_out = [s for s in steps if s["held_out"] is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], lw=0.6, alpha=0.6, label="training")
    axes.plot([s["step"] for s in held_out], [s["held_out"] for s in held_out], "o-", ms=3, label="held out")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(loc="upper right")
    density = axes.twinx()
    density.semilogy([s["step"] for s in steps], [s["density"] for s in steps], "k:", lw=1)
    density.set_ylabel("density (dotted)")
    checkpoint.write_atomically(folder / PLOT, lambda to: figure.savefig(to, format="png", dpi=120))


if __name__ == "__main__":  # torchrun --nproc_per_node=2 -m sparsekern.train ...: as `sparsekern train ...`
    from .cli import main

    main("train")
