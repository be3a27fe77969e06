"""A small byte-level BPE tokenizer, made like the one of Gao et al. (2025)."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

END_OF_TEXT = "<|endoftext|>"

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
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_PIECES), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    learned = tokenizer.get_vocab_size()
    if learned < vocab_size - 1:
        raise ValueError(
            f"documents: the corpus is too small for vocab_size={vocab_size}, it gives only {learned + 1} entries"
        )
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return _with_plain_end_of_text(tokenizer)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a tokenizer that was written as JSON, set to treat END_OF_TEXT as `train_tokenizer` says."""
    return _with_plain_end_of_text(Tokenizer.from_file(str(path)))


def _with_plain_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # named for its effect on text; the JSON does not keep it
    return tokenizer
