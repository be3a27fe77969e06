"""A run's model with all that a search for circuits needs, and the search from a task's name to its files."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import checkpoint
from ..data import held_out_batches, load_corpus, load_tokenizer
from ..models import GPT
from ..run_folder import CIRCUITS, MEANS, TOKENIZER, load_model, read_config
from .checks import check, untrained_like
from .circuit import Circuit
from .describe import describe
from .masks import CENTRES
from .nodes import mean_activations
from .prune import TARGET, Subject, find_cut
from .tasks import Task, TaskError, build_task

MEAN_WINDOWS = 256  # of the training corpus, of the length of the model's context
TEXT_WINDOWS = 128  # in which nodes' contexts are looked for, and in which a circuit is compared with its model
AT_ONCE = 16
LEAST_ACCURACY = 0.75  # of a model in a task that is worth a search


class Workbench:
    """A run folder opened to look for circuits.

    Args:
        folder: of the run; the means are cached there, and circuits saved.
        device: "cpu", "cuda" or "cuda:1".

    Attributes:
        subject: the model and its means.
        tokenizer: of the run.

    Raises:
        ValueError: no run, or its corpus cannot be read any more.
        CheckpointError: its model cannot be read.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder = folder
        self.device = torch.device(device)
        config = read_config(folder)
        model = load_model(folder, device)
        self.tokenizer = load_tokenizer(folder / TOKENIZER)
        self._corpus = load_corpus(config.sources or None, vocab_size=config.vocab_size)
        self._context = model.config.block_size
        self.subject = Subject(model, self._means(model))
        self._untrained: dict[int, Subject] = {}

    def task(self, name: str) -> Task:
        """A task in this run's tokens; raises TaskError."""
        return build_task(name, self.tokenizer, context=self._context).to(self.device)

    def untrained(self, seed: int = 0) -> Subject:
        """A model of the same shape with fresh random weights."""
        if seed not in self._untrained:
            model = untrained_like(self.subject.model, seed)
            means = mean_activations(model, self._windows(self._corpus.train, MEAN_WINDOWS))
            self._untrained[seed] = Subject(model, means)
        return self._untrained[seed]

    def find(
        self,
        name: str,
        *,
        target: float = TARGET,
        budget: int = 8,
        seed: int = 0,
        on_step: Callable[[], None] = lambda: None,
    ) -> Circuit:
        """Search for the circuit of a task, check it, and save it with its page and pictures.

        The files go to ``circuits/<task>`` in the run folder; :func:`sparsekern.circuits.find_cut` has the arguments.
        ``on_step`` is called ``steps_of(budget)`` times.

        Raises:
            TaskError: the task cannot be done here.
        """
        task, subject = self.task(name), self.subject
        self.require_able(task)
        found = find_cut(subject, task.train, target=target, budget=budget, seed=seed, on_step=on_step)
        if found is None:
            raise TaskError(f"{name}: no part of the model, and not all of it, has a task loss of {target} nats")
        text = list(self._windows(self._corpus.held_out, TEXT_WINDOWS))
        untrained = self.untrained(seed)
        checks = check(subject, untrained, task, found, text, target=target, seed=seed, on_step=on_step)
        circuit = describe(subject, task, found.cut, text, self._text_of, target, checks)
        self._save(circuit)
        return circuit

    def require_able(self, task: Task) -> None:
        """Raises TaskError where the model cannot do a task."""
        right = self.subject.accuracy(task.test)
        if right < LEAST_ACCURACY:
            raise TaskError(
                f"{task.name}: the model cannot do it (it is right in {right:.0%}, "
                f"and less than {LEAST_ACCURACY:.0%} is not worth a search)"
            )

    def circuit_folder(self, name: str) -> Path:
        return self.folder / CIRCUITS / name

    def _save(self, circuit: Circuit) -> None:
        folder = self.circuit_folder(circuit.about.task)
        circuit.save(folder)
        circuit.to_html(folder / "circuit.html")
        for kind in ("png", "svg"):
            circuit.to_picture(folder / f"circuit.{kind}")

    def _text_of(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _windows(self, tokens: object, count: int) -> Iterator[Tensor]:
        for ids, _ in held_out_batches(tokens, batch=AT_ONCE, context=self._context, count=count):  # type: ignore[arg-type]
            yield ids.to(self.device)

    def _means(self, model: GPT) -> dict[str, Tensor]:
        """Of every node over the training corpus; from the folder if they were taken of this very model."""
        path, key = self.folder / MEANS, _digest(model)
        try:
            with safe_open(path, framework="pt", device=str(self.device)) as file:
                if (file.metadata() or {}).get("model") == key:
                    return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            pass  # there are none yet
        means = mean_activations(model, self._windows(self._corpus.train, MEAN_WINDOWS))
        on_cpu = {name: mean.cpu() for name, mean in means.items()}
        checkpoint.write_atomically(path, lambda to: save_file(on_cpu, to, metadata={"model": key}))
        return means


def steps_of(budget: int) -> int:
    """Steps of learning in :meth:`Workbench.find`: the search and two controls."""
    return 3 * budget * CENTRES.steps


def _digest(model: GPT) -> str:
    """Names a model by its weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
