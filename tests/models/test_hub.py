"""Folders of the Hugging Face Hub, without the network."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from sparsekern.checkpoint import CheckpointError
from sparsekern.models import GPT, GPTConfig
from sparsekern.models.hub import WEIGHTS, HubGPT
from sparsekern.optim import SparseAdamW, param_groups

CONFIG = GPTConfig(block_size=12, vocab_size=40, n_layer=2, d_model=32, d_head=8, sink=True, tied_unembed=True)
IDS = torch.randint(40, (2, 7), generator=torch.Generator().manual_seed(1))


def a_model(mode: str | None = None) -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG, density=0.2)
    if mode is not None:
        optimizer = SparseAdamW(param_groups(model), lr=0.01, mode=mode)
        model.loss(IDS, IDS).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("mode", [None, "exact", "sparse"])
def test_a_folder_gives_the_same_model(mode: str | None, tmp_path: Path) -> None:
    model = a_model(mode)
    HubGPT.of(model).save_pretrained(tmp_path)
    loaded = HubGPT.from_pretrained(tmp_path)
    assert isinstance(loaded, GPT)
    assert loaded.config == CONFIG
    assert not loaded.training
    torch.testing.assert_close(loaded(IDS), model(IDS), rtol=1e-5, atol=1e-5)
    assert {w.form for w in loaded.matrices()} == {"values"}
    assert json.loads((tmp_path / "config.json").read_text()) == asdict(CONFIG)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert torch.equal(HubGPT.from_pretrained(again)(IDS), loaded(IDS))


def test_files_are_as_small_as_the_model_is_sparse(tmp_path: Path) -> None:
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=1, d_model=256, enable_bigram_table=False)
    HubGPT.of(GPT(config, density=0.01)).save_pretrained(tmp_path)
    dense = 4 * sum(w.shape[0] * w.shape[1] for w in GPT(config, density=0.0).matrices())
    assert (tmp_path / WEIGHTS).stat().st_size < dense / 20


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    HubGPT.of(a_model()).save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-50])
    with pytest.raises(CheckpointError, match="could not read"):
        HubGPT.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole)
    fields = {**asdict(CONFIG), "d_mlp": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        HubGPT.from_pretrained(tmp_path)
