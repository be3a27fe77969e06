import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sparsekern.data import (
    END_OF_TEXT,
    load_released_tokenizer,
    load_tokenizer,
    save_released_tokenizer,
    train_tokenizer,
)

DOCUMENTS = [
    f"def function_{i}(self, argument):\n    return self.value + {i} // {i * 7919}  # don't\n" for i in range(200)
]
VOCAB = 400
TOKENIZER = train_tokenizer(DOCUMENTS, VOCAB)


def pieces(text: str) -> list[str]:
    return [piece for piece, _ in TOKENIZER.pre_tokenizer.pre_tokenize_str(text)]


def test_vocabulary_has_every_byte_and_ends_with_end_of_text() -> None:
    assert TOKENIZER.get_vocab_size() == VOCAB
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(VOCAB))
    assert TOKENIZER.token_to_id(END_OF_TEXT) == VOCAB - 1
    single_bytes = train_tokenizer(DOCUMENTS, 257)
    assert single_bytes.get_vocab_size() == 257
    assert len(single_bytes.encode("aé\U0001f600").ids) == 1 + 2 + 4


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


@pytest.mark.parametrize("text", ["\r\n\r\n \t", "  x\n\n\n    y", "\x00", f"a{END_OF_TEXT}b", "\ufeffa b"])
def test_awkward_text_round_trips(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids) == text
    assert VOCAB - 1 not in ids


def test_pieces_follow_the_published_pattern() -> None:
    assert pieces("don't") == ["don", "'t"]  # as any letter run with one character before it
    assert pieces("'test") == ["'test"]  # the contraction branch would cut it after 't
    assert pieces("12345") == ["123", "45"]
    assert pieces("a://b") == ["a", "://", "b"]
    assert pieces("):\n/\n/x") == ["):Ċ/Ċ/", "x"]  # slashes and newlines trail the run
    assert pieces("x\n    y") == ["x", "Ċ", "ĠĠĠ", "Ġy"]


def test_merges_are_learned() -> None:
    assert TOKENIZER.encode("x return self").tokens == ["x", "Ġreturn", "Ġself"]


def test_deterministic_whatever_the_order() -> None:
    assert train_tokenizer(DOCUMENTS[::-1], VOCAB).to_str() == TOKENIZER.to_str()


def test_survives_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(str(path))
    loaded = load_tokenizer(path)
    assert isinstance(loaded, Tokenizer)
    text = DOCUMENTS[3] + END_OF_TEXT
    assert loaded.encode(text).ids == TOKENIZER.encode(text).ids
    assert loaded.to_str() == TOKENIZER.to_str()


def test_corpus_too_small() -> None:
    with pytest.raises(ValueError, match=r"corpus is too small for vocab_size=2048, it gives only \d+ entries"):
        train_tokenizer(["x = 1\n"], 2048)


def test_vocabulary_too_small() -> None:
    with pytest.raises(ValueError, match="vocab_size: expected at least 257, got 256"):
        train_tokenizer(DOCUMENTS, 256)


# ---- the released models' format


def test_released_format_round_trips(tmp_path: Path) -> None:
    save_released_tokenizer(TOKENIZER, tmp_path)
    loaded = load_released_tokenizer(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    for text in (*DOCUMENTS[:5], "", f"a{END_OF_TEXT}b", "  \r\n\té\U0001f600//*"):
        assert loaded.encode(text).ids == TOKENIZER.encode(text).ids
        assert loaded.decode(loaded.encode(text).ids) == text


def test_ids_are_those_that_gpt2s_files_imply(tmp_path: Path) -> None:
    """Bytes that can be printed, then the others under the characters from 256 on, then one id for each merge."""
    save_released_tokenizer(TOKENIZER, tmp_path)
    vocab = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    header, *lines = (tmp_path / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    printable = [chr(b) for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [chr(256 + n) for n in range(256 - len(printable))]
    merged = [line.replace(" ", "") for line in lines]
    assert header == "#version: 0.2"
    assert list(vocab) == [*printable, *others, *merged, END_OF_TEXT]
    assert list(vocab.values()) == list(range(VOCAB))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("encoder.json", lambda text: text[:-5], "could not read a tokenizer"),
        ("encoder.json", lambda text: "[1]", "could not read a tokenizer"),
        ("encoder.json", lambda text: text.replace(": 5,", ": 6,"), "ids must be 0 to 399, each once"),
        ("encoder.json", lambda text: text.replace("endoftext", "end"), "the last id must be that of"),
        ("vocab.bpe", lambda text: text[: len(text) // 2], "merges, got|not enough values"),
        ("vocab.bpe", lambda text: text.replace("\n", "\nnot there\n", 1), "expected 143 merges, got 144"),
        ("vocab.bpe", lambda text: "\n".join(["#", *["not there"] * 143]), "could not read a tokenizer"),
    ],
)
def test_damaged_released_files(file: str, change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    save_released_tokenizer(TOKENIZER, tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    (tmp_path / file).write_text(change(text), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_released_tokenizer(tmp_path)


def test_missing_released_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not read a tokenizer .*encoder.json"):
        load_released_tokenizer(tmp_path)
