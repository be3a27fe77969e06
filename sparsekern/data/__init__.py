"""Text to train on: a corpus from files, its tokenizer, batches of tokens, and a baseline to beat.

Needs the `train` extra (the tokenizers library); `import sparsekern` alone does not import this package.
"""

from sparsekern.data.bigram import bigram_loss, bigram_probabilities
from sparsekern.data.corpus import SIMPLE_PYTHON, find_files, read_documents, split_documents
from sparsekern.data.tokenizer import (
    END_OF_TEXT,
    load_released_tokenizer,
    load_tokenizer,
    save_released_tokenizer,
    train_tokenizer,
)
from sparsekern.data.tokens import Corpus, held_out_batches, load_corpus, sample_batch

__all__ = [
    "END_OF_TEXT",
    "SIMPLE_PYTHON",
    "Corpus",
    "bigram_loss",
    "bigram_probabilities",
    "find_files",
    "held_out_batches",
    "load_corpus",
    "load_released_tokenizer",
    "load_tokenizer",
    "read_documents",
    "sample_batch",
    "save_released_tokenizer",
    "split_documents",
    "train_tokenizer",
]
