"""A small byte-level BPE tokenizer, made like the one of Gao et al. (2025)."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

END_OF_TEXT = "<|endoftext|>"
ENCODER, MERGES = "encoder.json", "vocab.bpe"  # of the released models
_MERGES_HEADER = "#version: 0.2"

# How text falls into pieces that no merge crosses: cl100k's pattern without its branch for English
# contractions, and with a slash among the characters that may trail a run of punctuation.
_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SMALLEST_VOCABULARY = 256 + 1  # every byte, and the end of text


def train_tokenizer(documents: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """Trains a tokenizer of exactly `vocab_size` entries; the last id is END_OF_TEXT.

    Every byte is an entry, so any text round-trips exactly. The result depends on the documents only, not on
    their order. END_OF_TEXT inside a text is encoded as ordinary characters: only code can end a document.

    Raises:
        ValueError: `vocab_size` is below 257, or the documents are too few to learn that many entries.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size: expected at least {_SMALLEST_VOCABULARY}, got {vocab_size}")
    tokenizer = _byte_level(BPE())
    trainer = BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    learned = tokenizer.get_vocab_size()
    if learned < vocab_size - 1:
        raise ValueError(
            f"documents: the corpus is too small for vocab_size={vocab_size}, it gives only {learned + 1} entries"
        )
    return _with_end_of_text(tokenizer)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a tokenizer that was written as JSON, set to treat END_OF_TEXT as `train_tokenizer` says."""
    return _with_plain_end_of_text(Tokenizer.from_file(str(path)))


def load_released_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads the released models' tokenizer: ``encoder.json`` and ``vocab.bpe``, as GPT-2 has them.

    Raises:
        ValueError: a file is missing or damaged, or the entries are not bytes and merges and then END_OF_TEXT.
    """
    encoder, merges = Path(folder) / ENCODER, Path(folder) / MERGES
    try:
        vocab = json.loads(encoder.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [(first, second) for first, second in (line.split(" ") for line in lines[1:] if line)]
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError(f"{ENCODER}: ids must be 0 to {len(vocab) - 1}, each once")
        if vocab.pop(END_OF_TEXT, None) != len(vocab):
            raise ValueError(f"{ENCODER}: the last id must be that of {END_OF_TEXT}")
        if len(pairs) != len(vocab) - 256:
            raise ValueError(f"{MERGES}: expected {len(vocab) - 256} merges, got {len(pairs)}")
        return _with_end_of_text(_byte_level(BPE(vocab=vocab, merges=pairs)))
    except Exception as error:  # of a library in Rust, which has no classes of its own for them
        raise ValueError(f"could not read a tokenizer from {folder}: {error}") from error


def save_released_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes what :func:`load_released_tokenizer` reads, from a tokenizer of :func:`train_tokenizer`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    (folder / ENCODER).write_text(json.dumps(dict(vocab)), encoding="utf-8")
    (folder / MERGES).write_text("\n".join([_MERGES_HEADER, *map(" ".join, merges)]) + "\n", encoding="utf-8")


def _byte_level(model: BPE) -> Tokenizer:
    """A model between the pieces of the published pattern and bytes."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_PIECES), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _with_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return _with_plain_end_of_text(tokenizer)


def _with_plain_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # named for its effect on text; the JSON does not keep it
    return tokenizer
