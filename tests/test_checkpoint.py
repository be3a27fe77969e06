"""Checkpoints appear whole or not at all, and what cannot be read says so."""

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsekern import checkpoint
from sparsekern.checkpoint import CheckpointError, write_atomically
from sparsekern.models import GPT, GPTConfig
from sparsekern.optim import SparseAdamW, param_groups
from sparsekern.train import set_budgets

TINY = GPTConfig(block_size=8, vocab_size=30, n_layer=1, d_model=16, d_head=8)
IDS = torch.arange(24).view(3, 8)


def a_model(seed: int = 0, density: float = 0.2, config: GPTConfig = TINY) -> tuple[GPT, SparseAdamW]:
    """A model after two steps, and its optimizer."""
    torch.manual_seed(seed)
    model = GPT(config)
    optimizer = SparseAdamW(param_groups(model), lr=0.1)
    set_budgets(model.matrices() + model.embeddings(), density)
    for _ in range(2):
        train_step(model, optimizer)
    return model, optimizer


def train_step(model: GPT, optimizer: SparseAdamW) -> float:
    optimizer.zero_grad()
    loss = model.loss(IDS, IDS.flip(0))
    loss.backward()
    optimizer.step()
    return loss.item()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- atomic writing


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("old", "new"):
        write_atomically(path, lambda to, text=text: to.write_text(text))
        assert path.read_text() == text
    assert names(tmp_path) == {"file"}


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(to: Path) -> None:
        to.write_text("new")
        assert path.read_text() == "old"
        assert to.parent == tmp_path  # on one file system, so that it can be renamed

    write_atomically(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("existed", [True, False], ids=["old-file", "no-file"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "file"
    if existed:
        path.write_text("old")

    def write(to: Path) -> None:
        to.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError) as caught:
        write_atomically(path, write)
    kept = "; the one before it is kept" if existed else ""
    assert str(caught.value) == f"could not write {path}: [Errno 28] No space left on device{kept}"
    assert names(tmp_path) == ({"file"} if existed else set())
    assert not existed or path.read_text() == "old"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_other_exceptions_pass_and_keep_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(to: Path) -> None:
        to.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert names(tmp_path) == {"file"}
    assert path.read_text() == "old"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not write .*missing/file: "):
        write_atomically(tmp_path / "missing" / "file", lambda to: to.write_text("new"))


# ---- what a checkpoint keeps


def test_training_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    model, optimizer = a_model()
    checkpoint.save(tmp_path / "last", model, optimizer, {"step": 2})
    losses = [train_step(model, optimizer) for _ in range(3)]
    other = GPT(TINY)
    assert checkpoint.load(tmp_path / "last", other) == {"step": 2}
    other_optimizer = SparseAdamW(param_groups(other), lr=0.1)
    assert checkpoint.load_optimizer(tmp_path / "last", other, other_optimizer) == {"step": 2}
    assert [train_step(other, other_optimizer) for _ in range(3)] == losses
    assert names(tmp_path) == {"last"}


def test_saved_weights_give_the_same_logits(tmp_path: Path) -> None:
    model, _ = a_model()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    checkpoint.save_weights(tmp_path / "best", model, {})
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())  # not changed by saving
    torch.manual_seed(1)
    other = GPT(TINY)
    checkpoint.load(tmp_path / "best", other)
    assert not any(w.form == "master" for w in other.matrices() + other.embeddings())
    assert [w.nnz for w in other.matrices()] == [w.nnz for w in model.matrices()]
    torch.testing.assert_close(other(IDS), model(IDS), rtol=1e-6, atol=1e-6)


def test_saved_weights_hold_no_dense_matrix(tmp_path: Path) -> None:
    model, optimizer = a_model()
    checkpoint.save_weights(tmp_path / "best", model, {})
    checkpoint.save(tmp_path / "last", model, optimizer, {})
    stored = read(tmp_path / "best")
    assert not any(name.endswith("master") or name.startswith("optimizer.") for name in stored)
    assert stored["model.blocks.0.mlp.c_fc.weight.values"].shape == (int(0.2 * 64 * 16),)
    assert (tmp_path / "best").stat().st_size < 0.3 * (tmp_path / "last").stat().st_size


def test_meta_survives(tmp_path: Path) -> None:
    model, _ = a_model()
    meta = {"step": 3, "best": None, "model": {"afrac": 0.25}, "text": 'quote " and é'}
    checkpoint.save_weights(tmp_path / "best", model, meta)
    assert checkpoint.read_meta(tmp_path / "best") == meta


def read(path: Path) -> dict[str, Tensor]:
    return load_file(path)


# ---- what cannot be read


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, *a_model(), {"step": 2})
    return path


def refuse(path: Path, message: str, config: GPTConfig = TINY) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(path, GPT(config))
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    refuse(tmp_path / "none.safetensors", "could not read .*[Nn]o such file")
    with pytest.raises(CheckpointError, match="could not read"):
        checkpoint.read_meta(tmp_path / "none.safetensors")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(saved: Path, fraction: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(fraction * len(content))])
    refuse(saved, "could not read")


@pytest.mark.parametrize("content", [b"garbage", b"\xff" * 1000, b"PK\x03\x04" + bytes(100)])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)
    refuse(path, "could not read")


@pytest.mark.parametrize("metadata", [None, {"sparsekern": "null"}, {"sparsekern": "[1]"}, {"other": "{}"}])
def test_a_foreign_safetensors_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "foreign"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    refuse(path, "is not a sparsekern checkpoint")


def test_damaged_metadata(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    save_file({"weight": torch.zeros(3)}, path, metadata={"sparsekern": "{"})
    refuse(path, "could not read")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 24}, r"size mismatch for .*wte\.weight|wte\.weight: "),
        ({"n_layer": 2}, r"Missing key.*blocks\.1\.ln_1\.weight"),
        ({"vocab_size": 31}, "bigram_table"),
        ({"enable_bigram_table": False}, r"Unexpected key.*bigram_table"),
    ],
)
def test_another_model(saved: Path, changes: dict[str, int], message: str) -> None:
    refuse(saved, f"(?s)does not fit the model: .*({message})", dataclasses.replace(TINY, **changes))


def test_a_damaged_pattern(saved: Path) -> None:
    tensors = read(saved)
    tensors["model.blocks.0.mlp.c_fc.weight.col_indices"][0] = 99
    save_file(tensors, saved, metadata={"sparsekern": json.dumps({"step": 2})})
    refuse(saved, r"(?s)does not fit the model: .*blocks\.0\.mlp\.c_fc\.weight: .*between 0 and 15")
