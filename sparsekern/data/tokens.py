"""A corpus as two memory-mapped streams of tokens, made once and cached, and the batches drawn from them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tokenizers import Tokenizer

from sparsekern.data.corpus import content_digest, load_documents, split_documents
from sparsekern.data.tokenizer import END_OF_TEXT, load_tokenizer, train_tokenizer

_FORMAT = 1  # part of the cache key: raise it when the same documents would give other tokens or files
_LARGEST_VOCABULARY = 2**16  # tokens are stored as uint16
_DOCUMENTS_AT_ONCE = 256  # the tokenizer's result takes many times the memory of the text


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenised corpus. Each document is followed by the end-of-text token.

    Attributes:
        folder: where it is cached.
        tokenizer: trained on the train documents only.
        train: memory-mapped uint16, 1-D.
        held_out: memory-mapped uint16, 1-D, from other documents than `train`.
        documents: number of documents on both sides together.
        bytes_per_token: UTF-8 bytes of the held-out text per held-out token, ends of text counted as tokens:
            what turns nats per token into bits per byte.
    """

    folder: Path
    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    documents: int
    bytes_per_token: float


def load_corpus(
    sources: Sequence[str | Path] | None = None, *, vocab_size: int = 2048, cache_dir: Path | None = None
) -> Corpus:
    """Loads the tokens of a corpus, and makes them first if these contents were never seen before.

    The tokens depend on the documents' contents only: neither on paths nor on the order of files.

    Args:
        sources: as in `find_files`; None means the running Python's standard library, "simple-python" programs that
            are made up.
        vocab_size: entries of the tokenizer, from 257 to 65536.
        cache_dir: where made corpora are kept, by default `$XDG_CACHE_HOME/sparsekern`, or else
            `~/.cache/sparsekern`.

    Raises:
        ValueError: `vocab_size` is out of range, a source matches nothing, the corpus is too small, or its
            cached files are damaged.
    """
    if vocab_size > _LARGEST_VOCABULARY:
        raise ValueError(f"vocab_size: expected at most {_LARGEST_VOCABULARY} (uint16 tokens), got {vocab_size}")
    documents = sorted(load_documents(sources), key=content_digest)
    folder = (_default_cache() if cache_dir is None else Path(cache_dir)) / _cache_key(documents, vocab_size)
    if not folder.is_dir():
        _build_in_place(folder, documents, vocab_size)
    return _open(folder)


def sample_batch(
    tokens: np.ndarray, *, batch: int, context: int, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws random windows: (inputs, targets), both int64 (batch, context), targets one token ahead.

    A pure function of its arguments: a resumed run needs the step, and no state of a generator.

    Raises:
        ValueError: `tokens` is shorter than context + 1, `batch` or `context` below 1, `seed` or `step` not
            in [0, 2**64).
    """
    _check_at_least_one("batch", batch)
    last = _last_start(tokens, context)
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}: expected an integer in [0, 2**64), got {value}")
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    return _windows(tokens, generator.integers(0, last, size=batch, endpoint=True), context)


def held_out_batches(
    tokens: np.ndarray, *, batch: int, context: int, count: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Gives the same `count` evenly spaced windows every time, at most `batch` of them at once.

    Yields (inputs, targets), both int64 (at most batch, context), targets one token ahead.

    Raises:
        ValueError: at the call, not later: `tokens` is shorter than context + 1, or `batch`, `context` or
            `count` below 1.
    """
    _check_at_least_one("batch", batch)
    _check_at_least_one("count", count)
    starts = np.arange(count) * _last_start(tokens, context) // max(count - 1, 1)
    return (_windows(tokens, starts[first : first + batch], context) for first in range(0, count, batch))


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsekern"


def _cache_key(documents: list[str], vocab_size: int) -> str:
    key = hashlib.blake2b(f"{_FORMAT} {vocab_size}".encode(), digest_size=16)
    for document in documents:
        key.update(content_digest(document))
    return f"corpus-{key.hexdigest()}"


def _build_in_place(folder: Path, documents: list[str], vocab_size: int) -> None:
    """Builds next to `folder` and renames at the end, so that whatever bears its name is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        _build(built, documents, vocab_size)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            # Another process was faster: its files are the same, ours are dropped.


def _build(folder: Path, documents: list[str], vocab_size: int) -> None:
    train, held_out = split_documents(documents)
    tokenizer = train_tokenizer(train, vocab_size)
    train_tokens, held_out_tokens = _encode(tokenizer, train), _encode(tokenizer, held_out)
    counts = {
        "documents": len(documents),
        "train_tokens": len(train_tokens),
        "held_out_tokens": len(held_out_tokens),
        "held_out_bytes": sum(len(document.encode()) for document in held_out),
    }
    folder.mkdir()
    with _new_file(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    with _new_file(folder / "train.npy") as file:
        np.save(file, train_tokens)
    with _new_file(folder / "held_out.npy") as file:
        np.save(file, held_out_tokens)
    with _new_file(folder / "corpus.json") as file:
        file.write(json.dumps(counts, indent=2).encode())


def _encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    end = [tokenizer.token_to_id(END_OF_TEXT)]
    pieces = [
        np.array(encoding.ids + end, dtype=np.uint16)
        for first in range(0, len(documents), _DOCUMENTS_AT_ONCE)
        for encoding in tokenizer.encode_batch_fast(documents[first : first + _DOCUMENTS_AT_ONCE])
    ]
    return np.concatenate(pieces)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file whose content is on the disk before the folder gets its final name."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _open(folder: Path) -> Corpus:
    counts = json.loads((folder / "corpus.json").read_text())
    return Corpus(
        folder=folder,
        tokenizer=load_tokenizer(folder / "tokenizer.json"),
        train=_map(folder / "train.npy", counts["train_tokens"]),
        held_out=_map(folder / "held_out.npy", counts["held_out_tokens"]),
        documents=counts["documents"],
        bytes_per_token=counts["held_out_bytes"] / counts["held_out_tokens"],
    )


def _map(path: Path, count: int) -> np.ndarray:
    tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    if tokens.dtype != np.uint16 or tokens.shape != (count,):
        raise ValueError(
            f"{path}: expected {count} uint16 tokens, found {tokens.dtype} of shape {tokens.shape}; "
            "delete the folder to have it made again"
        )
    return tokens


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    windows = torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _last_start(tokens: np.ndarray, context: int) -> int:
    _check_at_least_one("context", context)
    if len(tokens) < context + 1:
        raise ValueError(f"tokens: expected at least context + 1 = {context + 1} of them, got {len(tokens)}")
    return len(tokens) - context - 1


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
