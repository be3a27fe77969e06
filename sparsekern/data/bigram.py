"""The count bigram: the loss that a language model has to beat."""

import numpy as np


def bigram_loss(train: np.ndarray, held_out_inputs: np.ndarray, held_out_targets: np.ndarray, vocab_size: int) -> float:
    """Mean nats per token of an interpolated Kneser-Ney bigram.

    Args:
        train: 1-D integer tokens to count, at least two.
        held_out_inputs: integer tokens of any shape.
        held_out_targets: of the same shape, the token that follows each input.
        vocab_size: every token lies in [0, vocab_size).

    Raises:
        ValueError: a shape, a dtype or a token is out of these bounds.
    """
    return float(-np.log(bigram_probabilities(train, held_out_inputs, held_out_targets, vocab_size)).mean())


def bigram_probabilities(
    train: np.ndarray, held_out_inputs: np.ndarray, held_out_targets: np.ndarray, vocab_size: int
) -> np.ndarray:
    """P(target | input) under an interpolated Kneser-Ney bigram: float64, shaped like the inputs, never 0.

    With c the counts of pairs, D the absolute discount, and V = vocab_size:

        P(w | v) = (max(c(v, w) - D, 0) + D * |{u: c(v, u) > 0}| * P(w)) / sum_u c(v, u)
        P(w)     = (max(n(w) - D, 0)    + D * |{u: n(u) > 0}| / V)       / sum_u n(u)

    where n(w) = |{v: c(v, w) > 0}| counts the different tokens that w follows. After an input never seen it
    is P(w). This is interpolated Kneser-Ney smoothing as in S. F. Chen and J. Goodman, "An empirical study of
    smoothing techniques for language modeling", Computer Speech & Language 13 (1999), with one discount for
    both levels.

    Arguments and errors are those of `bigram_loss`.
    """
    train = _checked("train", train, vocab_size)
    inputs = _checked("held_out_inputs", held_out_inputs, vocab_size)
    targets = _checked("held_out_targets", held_out_targets, vocab_size)
    if train.ndim != 1 or len(train) < 2:
        raise ValueError(f"train: expected a 1-D array of at least two tokens, got shape {train.shape}")
    if inputs.shape != targets.shape:
        raise ValueError(f"held_out_targets: expected the shape of the inputs {inputs.shape}, got {targets.shape}")

    # A pair is one number, so that memory grows with the pairs seen and not with vocab_size squared.
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    first, second = np.divmod(pairs, vocab_size)
    discount = _discount(counts)
    followed = np.bincount(first, weights=counts, minlength=vocab_size)
    successors = np.bincount(first, minlength=vocab_size)
    predecessors = np.bincount(second, minlength=vocab_size)

    uniform = discount * np.count_nonzero(predecessors) / vocab_size
    unigram = (np.maximum(predecessors - discount, 0) + uniform) / len(pairs)

    wanted = inputs * vocab_size + targets
    nearest = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[nearest] == wanted, counts[nearest], 0)
    backed_off = unigram[targets]
    numerator = np.maximum(count - discount, 0) + discount * successors[inputs] * backed_off
    total = followed[inputs]
    return np.divide(numerator, total, out=backed_off, where=total > 0)


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), with n1 and n2 the number of pairs seen once and twice.

    One half without pairs seen once, where the estimate is 0 and would leave nothing for what was not seen.
    """
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return once / (once + 2 * twice) if once else 0.5


def _checked(name: str, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The tokens as int64, known to be integers in [0, vocab_size) and at least one."""
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.size == 0:
        raise ValueError(f"{name}: expected integer tokens, got {tokens.dtype} of shape {tokens.shape}")
    low, high = tokens.min(), tokens.max()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name}: expected tokens in [0, {vocab_size}), got {low} to {high}")
    return tokens.astype(np.int64)
