import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from sparsekern.data import bigram_loss, bigram_probabilities

VOCAB = 12


def skewed(count: int, seed: int) -> np.ndarray:
    """Tokens of which the last two ids never occur, and the higher ones rarely."""
    tokens = np.random.default_rng(seed).geometric(0.35, size=count) - 1
    return np.minimum(tokens, VOCAB - 3).astype(np.uint16)


def plain_probability(train: list[int], v: int, w: int) -> float:
    """The formula of the docstring, one pair at a time."""
    pairs = Counter(pairwise(train))
    once, twice = (sum(c == n for c in pairs.values()) for n in (1, 2))
    discount = once / (once + 2 * twice)
    predecessors = Counter(second for _, second in pairs)
    kinds = sum(predecessors.values())
    unigram = max(predecessors[w] - discount, 0) / kinds + discount * len(predecessors) / kinds / VOCAB
    followed = sum(count for (first, _), count in pairs.items() if first == v)
    if followed == 0:
        return unigram
    successors = sum(first == v for first, _ in pairs)
    return max(pairs[v, w] - discount, 0) / followed + discount * successors / followed * unigram


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = np.meshgrid(np.arange(VOCAB), np.arange(VOCAB), indexing="ij")
    return inputs, targets


def test_equals_the_plain_formula() -> None:
    train = skewed(60, seed=0)
    probabilities = bigram_probabilities(train, *every_pair(), VOCAB)
    plain = [[plain_probability(train.tolist(), v, w) for w in range(VOCAB)] for v in range(VOCAB)]
    np.testing.assert_allclose(probabilities, plain, rtol=1e-12)


@pytest.mark.parametrize(
    "train",
    [
        skewed(60, seed=1),
        skewed(5000, seed=2),
        np.array([3, 4]),
        np.array([0, 1] * 50),
        np.array([1, 1, 1, 1]),
    ],
    ids=["few", "many", "one pair", "no pair once", "one token"],
)
def test_every_context_sums_to_one_and_leaves_nothing_out(train: np.ndarray) -> None:
    probabilities = bigram_probabilities(train, *every_pair(), VOCAB)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert probabilities.min() > 0


def test_loss_is_the_mean_negative_logarithm() -> None:
    train, held_out = skewed(300, seed=3), skewed(40, seed=4)
    loss = bigram_loss(train, held_out[:-1], held_out[1:], VOCAB)
    logs = [math.log(plain_probability(train.tolist(), int(v), int(w))) for v, w in pairwise(held_out)]
    assert loss == pytest.approx(-sum(logs) / len(logs), rel=1e-12)
    shaped = bigram_loss(train, held_out[:-1].reshape(3, 13), held_out[1:].reshape(3, 13), VOCAB)
    assert shaped == pytest.approx(loss, rel=1e-12)


def test_finds_the_entropy_of_a_markov_chain() -> None:
    rng = np.random.default_rng(5)
    transitions = rng.dirichlet(np.full(VOCAB, 0.3), size=VOCAB)
    tokens = [0]
    for draw in rng.random(40_000):
        tokens.append(min(int(np.searchsorted(transitions[tokens[-1]].cumsum(), draw)), VOCAB - 1))
    train, held_out = np.array(tokens[:30_000]), np.array(tokens[30_000:])
    entropy = -np.log(transitions[held_out[:-1], held_out[1:]]).mean()
    assert bigram_loss(train, held_out[:-1], held_out[1:], VOCAB) == pytest.approx(entropy, abs=0.01)


def test_memory_grows_with_pairs_not_with_the_vocabulary() -> None:
    train = np.array([0, 60_000, 0, 60_000, 5])
    assert 0 < bigram_loss(train, train[:-1], train[1:], 65_536) < math.log(65_536)


@pytest.mark.parametrize(
    ("name", "train", "inputs", "targets"),
    [
        ("train", [1], [1], [1]),
        ("train", [[1, 2]], [1], [1]),
        ("train", [1, VOCAB], [1], [1]),
        ("train", [1.0, 2.0], [1], [1]),
        ("held_out_inputs", [1, 2], [-1], [1]),
        ("held_out_inputs", [1, 2], np.zeros(0, int), [1]),
        ("held_out_targets", [1, 2], [1], [VOCAB]),
        ("held_out_targets", [1, 2], [1], [1, 2]),
    ],
)
def test_errors(name: str, train: list, inputs: list, targets: list) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        bigram_loss(np.array(train), np.array(inputs), np.array(targets), VOCAB)
