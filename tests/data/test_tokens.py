import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsekern.data import (
    END_OF_TEXT,
    Corpus,
    held_out_batches,
    load_corpus,
    read_documents,
    sample_batch,
    split_documents,
    tokens,
)

VOCAB = 300
STREAM = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """A folder of 120 small files, each with other words."""
    rng = random.Random(0)
    folder = tmp_path / "sources"
    folder.mkdir()
    for i in range(120):
        words = [rng.choice(["alpha", "beta", "gamma", "délta"]) for _ in range(20)]
        (folder / f"{i}.py").write_text(f"n = {i}\n" + " = ".join(words) + "\n", encoding="utf-8")
    return [folder]


@pytest.fixture
def load(sources: list[Path], tmp_path: Path) -> Callable[[], Corpus]:
    return lambda: load_corpus(sources, vocab_size=VOCAB, cache_dir=tmp_path / "cache")


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("the cached tokens should have been used")


class TestLoadCorpus:
    def test_tokens_spell_the_documents(self, load: Callable[[], Corpus], sources: list[Path]) -> None:
        corpus = load()
        train, held_out = split_documents(read_documents(sorted(sources[0].iterdir())))
        assert corpus.documents == 120
        assert spelled(corpus, corpus.train) == sorted(train)
        assert spelled(corpus, corpus.held_out) == sorted(held_out)
        assert corpus.tokenizer.token_to_id(END_OF_TEXT) == VOCAB - 1
        bytes_held_out = sum(len(document.encode()) for document in held_out)
        assert corpus.bytes_per_token == bytes_held_out / len(corpus.held_out)

    def test_tokens_are_mapped_from_the_cache(self, load: Callable[[], Corpus], tmp_path: Path) -> None:
        corpus = load()
        assert isinstance(corpus.train, np.memmap)
        assert isinstance(corpus.held_out, np.memmap)
        assert corpus.train.dtype == corpus.held_out.dtype == np.uint16
        assert corpus.folder.parent == tmp_path / "cache"
        assert sorted(path.name for path in corpus.folder.iterdir()) == [
            "corpus.json",
            "held_out.npy",
            "tokenizer.json",
            "train.npy",
        ]

    def test_tokenizer_sees_train_documents_only(
        self, load: Callable[[], Corpus], sources: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        train_tokenizer = tokens.train_tokenizer
        monkeypatch.setattr(tokens, "train_tokenizer", lambda d, v: seen.extend(d) or train_tokenizer(d, v))
        load()
        assert sorted(seen) == sorted(split_documents(read_documents(sorted(sources[0].iterdir())))[0])

    def test_second_call_does_not_tokenise(self, load: Callable[[], Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
        first = load()
        monkeypatch.setattr(tokens, "train_tokenizer", forbid)
        monkeypatch.setattr(tokens, "_encode", forbid)
        second = load()
        assert second.folder == first.folder
        assert np.array_equal(second.train, first.train)
        assert second.tokenizer.to_str() == first.tokenizer.to_str()
        assert (second.documents, second.bytes_per_token) == (first.documents, first.bytes_per_token)

    def test_renamed_files_are_the_same_corpus(
        self, load: Callable[[], Corpus], sources: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = load()
        for path in list(sources[0].iterdir()):
            path.rename(path.with_name(f"{path.stem[::-1]}-moved.py"))
        monkeypatch.setattr(tokens, "train_tokenizer", forbid)
        assert load().folder == first.folder

    def test_other_content_or_vocabulary_is_another_corpus(
        self, load: Callable[[], Corpus], sources: list[Path], tmp_path: Path
    ) -> None:
        folders = {
            load().folder,
            load_corpus(sources, vocab_size=VOCAB + 1, cache_dir=tmp_path / "cache").folder,
        }
        (sources[0] / "0.py").write_text("changed = True\n")
        assert len(folders | {load().folder}) == 3

    def test_building_twice_gives_the_same_bytes(self, load: Callable[[], Corpus]) -> None:
        folder = load().folder
        first = {path.name: path.read_bytes() for path in folder.iterdir()}
        shutil.rmtree(folder)
        assert {path.name: path.read_bytes() for path in load().folder.iterdir()} == first

    def test_interrupted_build_leaves_nothing(
        self, load: Callable[[], Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(tokens.np, "save", interrupt)
            with pytest.raises(KeyboardInterrupt):
                load()
        assert list((tmp_path / "cache").iterdir()) == []
        assert load().documents == 120

    def test_a_faster_builder_wins(
        self, load: Callable[[], Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build = tokens._build

        def overtaken(folder: Path, documents: list[str], vocab_size: int) -> None:
            monkeypatch.setattr(tokens, "_build", build)
            load()  # another process builds the same corpus from start to end
            build(folder, documents, vocab_size)

        monkeypatch.setattr(tokens, "_build", overtaken)
        corpus = load()
        assert list((tmp_path / "cache").iterdir()) == [corpus.folder]
        assert corpus.documents == 120

    def test_default_cache_folder(self, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert load_corpus(sources, vocab_size=VOCAB).folder.parent == tmp_path / "xdg" / "sparsekern"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert load_corpus(sources, vocab_size=VOCAB).folder.parent == tmp_path / "home/.cache/sparsekern"

    def test_damaged_tokens(self, load: Callable[[], Corpus]) -> None:
        corpus = load()
        for damaged in (np.array(corpus.train[:-1]), np.array(corpus.train, dtype=np.int64)):
            np.save(corpus.folder / "train.npy", damaged)
            with pytest.raises(ValueError, match=rf"train.npy: expected {len(corpus.train)} uint16 tokens"):
                load()

    def test_pickled_tokens_are_not_run(self, load: Callable[[], Corpus]) -> None:
        np.save(load().folder / "train.npy", np.array([print], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match="Python objects"):
            load()

    def test_vocabulary_beyond_uint16(self, sources: list[Path]) -> None:
        with pytest.raises(ValueError, match="vocab_size: expected at most 65536"):
            load_corpus(sources, vocab_size=65537)


def spelled(corpus: Corpus, stream: np.ndarray) -> list[str]:
    """The documents of a stream, sorted; every one must be followed by the end of text."""
    ends = np.flatnonzero(stream == VOCAB - 1)
    assert ends[-1] == len(stream) - 1
    return sorted(corpus.tokenizer.decode(piece[:-1].tolist()) for piece in np.split(stream, ends + 1)[:-1])


class TestSampleBatch:
    def test_shape_dtype_and_shift(self) -> None:
        inputs, targets = sample_batch(STREAM, batch=5, context=7, seed=1, step=2)
        assert inputs.shape == targets.shape == (5, 7)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs[:, :1] + torch.arange(7), inputs)  # windows of consecutive tokens
        assert torch.equal(targets, inputs + 1)  # the stream counts up, so one ahead is one more

    def test_pure_function_of_seed_and_step(self) -> None:
        def first(seed: int, step: int) -> list[int]:
            return sample_batch(STREAM, batch=16, context=3, seed=seed, step=step)[0][:, 0].tolist()

        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generators must not matter
        before = first(1, 2)
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        assert first(1, 2) == before
        assert len({tuple(first(seed, step)) for seed in range(4) for step in range(4)}) == 16

    def test_every_window_can_be_drawn(self) -> None:
        inputs, targets = sample_batch(STREAM[:6], batch=200, context=3, seed=0, step=0)
        assert set(inputs[:, 0].tolist()) == {0, 1, 2}
        assert targets.max() == 5
        only, _ = sample_batch(STREAM[:4], batch=2, context=3, seed=0, step=0)
        assert only.tolist() == [[0, 1, 2], [0, 1, 2]]

    @pytest.mark.parametrize(
        ("name", "changed"),
        [
            ("tokens", {"context": 1000}),
            ("batch", {"batch": 0}),
            ("context", {"context": 0}),
            ("seed", {"seed": -1}),
            ("step", {"step": 2**64}),
        ],
    )
    def test_errors(self, name: str, changed: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            sample_batch(STREAM, **({"batch": 1, "context": 1, "seed": 0, "step": 0} | changed))


class TestHeldOutBatches:
    def test_evenly_spaced_windows_from_end_to_end(self) -> None:
        batches = list(held_out_batches(STREAM, batch=2, context=9, count=5))
        assert [len(inputs) for inputs, _ in batches] == [2, 2, 1]
        inputs = torch.cat([inputs for inputs, _ in batches])
        targets = torch.cat([targets for _, targets in batches])
        assert inputs[:, 0].tolist() == [0, 247, 495, 742, 990]
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(9))
        assert torch.equal(targets, inputs + 1)
        assert inputs.dtype == targets.dtype == torch.int64

    def test_same_windows_whatever_the_batch(self) -> None:
        one, all_at_once = (
            torch.cat([inputs for inputs, _ in held_out_batches(STREAM, batch=batch, context=4, count=7)])
            for batch in (1, 100)
        )
        assert torch.equal(one, all_at_once)

    def test_single_window(self) -> None:
        [(inputs, targets)] = held_out_batches(STREAM[:3], batch=4, context=2, count=1)
        assert (inputs.tolist(), targets.tolist()) == ([[0, 1]], [[1, 2]])

    @pytest.mark.parametrize(
        ("name", "changed"),
        [
            ("tokens", {"context": 1000}),
            ("batch", {"batch": 0}),
            ("context", {"context": 0}),
            ("count", {"count": 0}),
        ],
    )
    def test_errors_at_the_call(self, name: str, changed: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            held_out_batches(STREAM, **({"batch": 1, "context": 1, "count": 1} | changed))
