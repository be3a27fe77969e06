"""Tasks as tokens: pairs of prompts whose next tokens differ, in batches, and how well a model does them.

A pair is used only if each answer is one token right after its prompt; why others were not is kept, for the message.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .templates import TEMPLATES, Draft

TRIES_PER_PAIR = 20  # drafts until a task is given up
ROWS_AT_ONCE = 128  # that a model is run on


class TaskError(Exception):
    """A task that cannot be done here; the message says why."""


@dataclass(frozen=True)
class Pairs:
    """N pairs of prompts as 2N rows; rows i and i + N are a pair.

    Attributes:
        ids: (2N, T) int64, zeros after the end of a prompt.
        last: (2N,) int64, where each prompt ends.
        targets, others: (2N,) int64, the token that is right and the one that would be after the other prompt.
    """

    ids: Tensor
    last: Tensor
    targets: Tensor
    others: Tensor

    def __len__(self) -> int:
        return len(self.ids) // 2

    def __getitem__(self, index: slice | Tensor) -> "Pairs":
        """Some of the pairs."""
        rows = torch.arange(len(self))[index]
        return self.rows(torch.cat([rows, rows + len(self)]))

    def rows(self, rows: Tensor) -> "Pairs":
        """Some of the rows, as long as the longest of them; they need not be pairs."""
        ids = self.ids[rows, : int(self.last[rows].max()) + 1]
        return Pairs(ids, self.last[rows], self.targets[rows], self.others[rows])

    def by_length(self) -> tuple[Tensor, ...]:
        """Numbers of the rows in the order of their lengths, some at a time: prompts differ, and zeros cost as much."""
        if len(self.last) <= ROWS_AT_ONCE:
            return (torch.arange(len(self.last), device=self.last.device),)
        return self.last.argsort(stable=True).split(ROWS_AT_ONCE)

    def to(self, device: torch.device | str) -> "Pairs":
        return Pairs(*(t.to(device) for t in (self.ids, self.last, self.targets, self.others)))

    def with_shuffled_labels(self, seed: int) -> "Pairs":
        """The answers of every other pair, chosen at random, exchanged: a task in which there is nothing to find."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        is_swapped = torch.zeros(len(self), dtype=torch.bool)
        is_swapped[order[: len(self) // 2]] = True
        swapped = is_swapped.repeat(2).to(self.ids.device)
        targets = torch.where(swapped, self.others, self.targets)
        others = torch.where(swapped, self.targets, self.others)
        return Pairs(self.ids, self.last, targets, others)

    @property
    def candidates(self) -> tuple[int, int] | None:
        """The two tokens to decide between, if they are the same in all pairs."""
        tokens = torch.cat([self.targets, self.others]).unique().tolist()
        return (tokens[0], tokens[1]) if len(tokens) == 2 else None


@dataclass(frozen=True)
class Task:
    """A task in the tokens of one tokenizer.

    Attributes:
        name: one of :data:`TASKS`.
        between, cue: what is decided, and by what.
        train, test: no prompt is in both.
        example: the prompts and the answers of one pair.
    """

    name: str
    between: str
    cue: str
    train: Pairs
    test: Pairs
    example: tuple[tuple[str, str], tuple[str, str]]

    def to(self, device: torch.device | str) -> "Task":
        return replace(self, train=self.train.to(device), test=self.test.to(device))


TASKS = tuple(TEMPLATES)


def build_task(name: str, tokenizer: Any, *, context: int, train: int = 384, test: int = 128, seed: int = 0) -> Task:
    """Draw the pairs of a task.

    Args:
        name: one of :data:`TASKS`.
        tokenizer: of the ``tokenizers`` library.
        context: tokens that a prompt may have.
        train, test: numbers of pairs.
        seed: of the drawing.

    Raises:
        TaskError: no such task, or too few pairs whose answers are single tokens of this tokenizer.
    """
    if name not in TEMPLATES:
        raise TaskError(f"task must be one of {', '.join(TASKS)}; got {name!r}")
    template, rng = TEMPLATES[name], Random(f"{name} {seed}")
    rows: dict[tuple[str, str], _Tokens] = {}
    reasons: Counter[str] = Counter()
    for _ in range(TRIES_PER_PAIR * (train + test)):
        if len(rows) == train + test:
            break
        draft = template.draw(rng)
        found = _tokenised(draft, tokenizer, context)
        if isinstance(found, str):
            reasons[found] += 1
        else:
            rows[draft.prompts] = found
    if len(rows) < train + test:
        most = "; ".join(reason for reason, _ in reasons.most_common(2)) or "the same prompts again and again"
        raise TaskError(f"{name}: only {len(rows)} of {train + test} pairs fit this tokenizer ({most})")
    drawn = list(rows.items())
    rng.shuffle(drawn)  # the last ones drawn are the rarer kinds: the common ones were there already
    prompts, tokens = zip(*drawn, strict=True)
    kept = tokens[0].answers
    example = (prompts[0], (tokenizer.decode([kept[0]]), tokenizer.decode([kept[1]])))
    return Task(name, template.between, template.cue, _stack(tokens[:train]), _stack(tokens[train:]), example)


@dataclass(frozen=True)
class _Tokens:
    prompts: tuple[list[int], list[int]]
    answers: tuple[int, int]


def _tokenised(draft: Draft, tokenizer: Any, context: int) -> _Tokens | str:
    """The first pair of answers that are single tokens, or why there is none."""
    prompts = tuple(tokenizer.encode(text).ids for text in draft.prompts)
    if max(map(len, prompts)) > context:
        return f"a prompt is longer than {context} tokens"
    for answers in draft.answers:
        first, second = (_single_token(*p, tokenizer) for p in zip(draft.prompts, prompts, answers, strict=True))
        if first is not None and second is not None and first != second:
            return _Tokens((prompts[0], prompts[1]), (first, second))
    return f"no single tokens for {' or '.join(f'{a!r} and {b!r}' for a, b in draft.answers)}"


def _single_token(text: str, prompt: list[int], answer: str, tokenizer: Any) -> int | None:
    """The token that ``answer`` is right after ``text``, if it is one and leaves the tokens of ``text`` as they are."""
    ids = tokenizer.encode(text + answer).ids
    return ids[-1] if ids[:-1] == prompt else None


def _stack(tokens: Sequence[_Tokens]) -> Pairs:
    prompts = [t.prompts[0] for t in tokens] + [t.prompts[1] for t in tokens]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    first, second = (torch.tensor([t.answers[side] for t in tokens]) for side in (0, 1))
    return Pairs(ids, last, torch.cat([first, second]), torch.cat([second, first]))


# ---- how well a model does them


def margins(model: Callable[[Tensor, Tensor], Tensor], pairs: Pairs) -> Tensor:
    """How much the right token's logit is above the other one's, (2N,); ``model`` is a GPT, or what runs like one."""
    pieces = pairs.by_length()
    found = [_margins(model, pairs.rows(rows)) for rows in pieces]
    return torch.cat(found)[torch.cat(pieces).argsort()]


def _margins(model: Callable[[Tensor, Tensor], Tensor], pairs: Pairs) -> Tensor:
    logits = model(pairs.ids, pairs.last)
    return (logits.gather(1, pairs.targets[:, None]) - logits.gather(1, pairs.others[:, None]))[:, 0]


def task_loss(margins: Tensor) -> Tensor:
    """Mean cross-entropy per sequence over the two candidates, in nats (the published losses are twice this)."""
    return F.softplus(-margins).mean()


def accuracy(margins: Tensor) -> float:
    """Fraction of the sequences whose right token has the higher logit."""
    return (margins > 0).double().mean().item()
