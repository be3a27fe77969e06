"""Tasks: pairs that differ in the cue alone, in tokens, and what is counted as right."""

import math
import re
from collections import Counter
from random import Random

import pytest
import torch
from torch import Tensor

from sparsekern.circuits import TASKS, Pairs, TaskError, accuracy, build_task, margins, task_loss
from sparsekern.circuits.templates import TEMPLATES
from sparsekern.data import train_tokenizer
from sparsekern.data.simple_python import simple_programs

PAPER = 20  # Gao et al. 2025, table 1
# Words and marks that one prompt of a pair has and the other has not, together; where it is 0, only the spaces differ.
LARGEST_CUE = dict.fromkeys(TASKS, 2) | {
    "final_kwarg": 6,
    "with_as": 3,
    "bracket_brace": 8,
    "class_init": 2,
    "if_ternary": 3,
    "set_or_string": 5,
    "set_or_string_fixedvarname": 5,
    "indent_for": 0,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(simple_programs(1500), 1024)


def test_the_published_tasks_are_there() -> None:
    assert len(TASKS) == PAPER
    assert TASKS[0] == "single_double_quote"


@pytest.mark.parametrize("name", TASKS)
def test_prompts_of_a_pair_differ_in_the_cue_alone(name: str) -> None:
    for seed in range(50):
        draft = TEMPLATES[name].draw(Random(seed))
        first, second = draft.prompts
        assert first != second
        assert all(a != b for a, b in draft.answers)
        words = [Counter(re.findall(r"\w+|[^\w\s]", text)) for text in draft.prompts]
        only_first, only_second = words[0] - words[1], words[1] - words[0]
        assert only_first.total() + only_second.total() <= LARGEST_CUE[name], (only_first, only_second)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_fits_the_tokenizer_of_simple_programs(name: str, tokenizer) -> None:
    task = build_task(name, tokenizer, context=128, train=40, test=20)
    assert (len(task.train), len(task.test)) == (40, 20)
    for pairs in (task.train, task.test):
        assert pairs.ids.shape[0] == 2 * len(pairs)
        assert pairs.targets.equal(pairs.others.roll(len(pairs)))
        assert (pairs.targets != pairs.others).all()
        assert int(pairs.last.max()) == pairs.ids.shape[1] - 1 < 128
    prompts = [
        [tuple(row[: n + 1]) for row, n in zip(p.ids.tolist(), p.last.tolist(), strict=True)]
        for p in (task.train, task.test)
    ]
    firsts = [set(zip(part[: len(part) // 2], part[len(part) // 2 :], strict=True)) for part in prompts]
    assert not firsts[0] & firsts[1]
    for i in range(3):  # the token of the answer is what the text goes on with
        text = tokenizer.decode(list(prompts[0][i])) + tokenizer.decode([int(task.train.targets[i])])
        assert tokenizer.encode(text).ids == [*prompts[0][i], int(task.train.targets[i])]


def test_pairs_depend_on_the_seed_alone(tokenizer) -> None:
    a, b, c = (build_task("var_swap", tokenizer, context=64, seed=seed).train for seed in (0, 0, 1))
    assert a.ids.equal(b.ids)
    assert not (a.ids.shape == c.ids.shape and a.ids.equal(c.ids))


def test_an_answer_that_is_no_token_is_a_clear_error() -> None:
    bytes_only = train_tokenizer(simple_programs(20), 260)
    with pytest.raises(
        TaskError, match=r"enumerate_range: only 0 of 512 pairs fit this tokenizer \(no single tokens for"
    ):
        build_task("enumerate_range", bytes_only, context=64)
    with pytest.raises(TaskError, match="a prompt is longer than 4 tokens"):
        build_task("for_while", bytes_only, context=4)


def test_an_unknown_task_names_the_known_ones(tokenizer) -> None:
    with pytest.raises(TaskError, match="task must be one of single_double_quote, .*; got 'quotes'"):
        build_task("quotes", tokenizer, context=64)


def some_pairs() -> Pairs:
    ids = torch.tensor([[1, 2, 3], [4, 5, 0], [1, 7, 3], [6, 5, 0]])
    return Pairs(ids, torch.tensor([2, 1, 2, 1]), torch.tensor([8, 8, 9, 9]), torch.tensor([9, 9, 8, 8]))


def test_margins_are_read_where_each_prompt_ends() -> None:
    pairs = some_pairs()
    logits = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))
    found = margins(lambda ids, at: logits[torch.arange(4), at], pairs)
    rows = zip(pairs.last.tolist(), pairs.targets.tolist(), pairs.others.tolist(), strict=True)
    assert found.tolist() == [(logits[i, n, t] - logits[i, n, o]).item() for i, (n, t, o) in enumerate(rows)]


def test_many_rows_are_run_in_pieces_of_equal_length() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, (2 * 150, 20), generator=generator)
    last = torch.randint(20, (300,), generator=generator)
    targets, others = torch.randint(10, (2, 300), generator=generator)
    pairs, table, seen = Pairs(ids, last, targets, others), torch.randn(20, 10, 10, generator=generator), []

    def model(ids: Tensor, at: Tensor) -> Tensor:
        """Logits of the token at the end, and of where that is."""
        seen.append(ids.shape)
        return table[at, ids[torch.arange(len(ids)), at]]

    found = margins(model, pairs)
    ends = ids[torch.arange(300), last]
    assert found.equal(table[last, ends, targets] - table[last, ends, others])
    assert [rows for rows, _ in seen] == [128, 128, 44]
    lengths = (last + 1).sort().values
    assert [tokens for _, tokens in seen] == [lengths[127].item(), lengths[255].item(), 20]


def test_loss_is_the_mean_cross_entropy_per_sequence() -> None:
    m = torch.tensor([2.0, -1.0])
    expected = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(1)))) / 2
    assert task_loss(m).item() == pytest.approx(expected)
    assert accuracy(m) == 0.5


def test_some_pairs_and_shuffled_labels() -> None:
    pairs = some_pairs()
    one = pairs[torch.tensor([1])]
    assert one.ids.tolist() == [[4, 5], [6, 5]]
    assert one.targets.tolist() == [8, 9]
    assert pairs.candidates == (8, 9)
    shuffled = pairs.with_shuffled_labels(0)
    swapped = (shuffled.targets != pairs.targets).tolist()
    assert swapped[:2] == swapped[2:]  # both sides of a pair
    assert sum(swapped) == 2
    assert shuffled.candidates == (8, 9)
    assert shuffled.ids.equal(pairs.ids)


@pytest.mark.parametrize("name", ["for_while", "if_equals"])
def test_prompts_to_test_with_are_like_those_to_search_with(name: str, tokenizer) -> None:
    """Short prompts are few, so most of them are among the first ones drawn."""
    task = build_task(name, tokenizer, context=64, train=800, test=400)
    lengths = [pairs.last.double().mean().item() for pairs in (task.train, task.test)]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.9)
