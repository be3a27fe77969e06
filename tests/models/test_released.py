"""The released format: every variant goes out and comes in again, and nothing else does."""

import dataclasses
import io
import json
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_gpt import dense_logits
from torch import Tensor

from sparsekern import report
from sparsekern.models import GPT, GPTConfig, ReleasedFormatError, load_released, save_released
from sparsekern.models.config import LOCATIONS
from sparsekern.models.released import CONFIG, WEIGHTS

TINY = GPTConfig(block_size=12, vocab_size=40, n_layer=2, d_model=32, d_head=8)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "yolo2": {"sink": True, "d_pos_emb": 6},
    "sines": {"d_pos_emb": 6, "sinusoidal_cat_pos_emb": True, "dropout_cat_pos_emb": True, "dropout": 0.1},
    "tied": {"tied_unembed": True, "enable_bigram_table": False},
    "LayerNorm": {"rms_norm": False, "d_pos_emb": 4},
    "LayerNorm without bias": {"rms_norm": False, "ln_bias": False},
    "ReLU": {"activation_type": "relu", "residual_activation_type": "relu", "bias": False},
    "final bias": {"final_logits_bias": True, "learnable_bigram_table": False},
    "widths": {"n_head": 3, "d_mlp": 50, "afrac": None},
    "ten locations": {"afrac_loctypes": ",".join(LOCATIONS), "afrac": 0.5, "grad_checkpointing": True},
}


def a_model(form: str = "values", seed: int = 0, **changes: Any) -> GPT:
    torch.manual_seed(seed)
    config = dataclasses.replace(TINY, **changes)
    model = GPT(config, density=0.2 if form == "values" else None).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and not (config.sinusoidal_cat_pos_emb and tensor is model.wpe.weight):
                tensor.normal_(0, 0.4)
    return model


IDS = torch.randint(40, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_released(a_model(), tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        fields.pop(name, None)
        fields |= {} if value is ... else {name: value}
    (folder / CONFIG).write_text(json.dumps(fields))


def change_state(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = torch.load(folder / WEIGHTS, weights_only=True)
    change(state)
    torch.save(state, folder / WEIGHTS)


# ---- there and back


@pytest.mark.parametrize("form", ["values", "master"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trips_are_exact(variant: str, form: str, tmp_path: Path) -> None:
    model = a_model(form, **VARIANTS[variant])
    save_released(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_released(tmp_path)
    same = {"n_head": model.config.heads, "d_mlp": model.config.mlp_width, "grad_checkpointing": False}
    assert loaded.config == dataclasses.replace(model.config, **same)
    torch.testing.assert_close(loaded(IDS), model(IDS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded(IDS), dense_logits(loaded, IDS), rtol=1e-4, atol=1e-4)
    state = torch.load(tmp_path / WEIGHTS, weights_only=True)
    save_released(loaded, tmp_path / "again")
    again = torch.load(tmp_path / "again" / WEIGHTS, weights_only=True)
    assert set(again) == set(state)
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert (tmp_path / "again" / CONFIG).exists()


def test_the_published_names_and_shapes(tmp_path: Path) -> None:
    save_released(a_model(sink=True, d_pos_emb=6, rms_norm=False), tmp_path)
    state = torch.load(tmp_path / WEIGHTS, weights_only=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if ".h.1." not in key}
    block = "transformer.h.0"
    assert shapes == {
        "transformer.wte.weight": (40, 32),
        "transformer.wpe.weight": (12, 6),
        **{f"{block}.{name}.{kind}": (32,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")},
        **{f"{block}.{name}.{kind}": (6,) for name in ("ln_p1", "ln_p2") for kind in ("weight", "bias")},
        f"{block}.attn.c_attn.weight": (96, 38),
        f"{block}.attn.c_attn.bias": (96,),
        f"{block}.attn.c_proj.weight": (32, 32),
        f"{block}.attn.c_proj.bias": (32,),
        f"{block}.attn.attn_imp.sink_logit": (4,),
        f"{block}.mlp.c_fc.weight": (128, 38),
        f"{block}.mlp.c_fc.bias": (128,),
        f"{block}.mlp.c_proj.weight": (32, 128),
        f"{block}.mlp.c_proj.bias": (32,),
        "transformer.ln_f.weight": (32,),
        "transformer.ln_f.bias": (32,),
        "lm_head.weight": (40, 32),
        "final_logits_bias": (40,),
        "bigram_table": (40, 40),
    }
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_matrices_come_as_their_nonzeros(saved: Path) -> None:
    model = load_released(saved)
    assert {w.form for w in model.matrices() + model.embeddings()} == {"values"}
    densities = {layer.name: layer.density for layer in report(model).layers}
    assert densities["blocks.0.mlp.c_fc"] == pytest.approx(0.2, abs=0.001)
    assert len(densities) == 2 * 4 + 3


@pytest.mark.parametrize("kept", [0, 1])
def test_positions_of_zeros_stay_zeros(kept: int, tmp_path: Path) -> None:
    model = a_model()
    with torch.no_grad():
        model.wpe.weight.values[kept:] = 0
    save_released(model, tmp_path)
    assert load_released(tmp_path).wpe.weight.nnz == kept


# ---- variants of the published files


def test_unknown_keys_are_named_once(saved: Path) -> None:
    expected = load_released(saved)(IDS)
    change_config(saved, pfrac=0.25, rtopk=False, mup=None)
    with pytest.warns(UserWarning, match=r"left out what the format does not know: mup, pfrac, rtopk$") as caught:
        model = load_released(saved)
    assert len(caught) == 1
    assert torch.equal(model(IDS), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"sink": ...},
        {"d_head": None},
        {"d_mlp": ..., "n_mlp": 128},
        {"use_tied_aux_matrix": False},
        {"flash": False, "debug_nans": True, "tokenizer_name": "tinypython_2k", "enable_sparse_kernels": True},
        {"grad_checkpointing": True},
        {"dropout": 0},
    ],
    ids=lambda c: ",".join(c),
)
def test_variants_of_the_configuration(saved: Path, changes: dict[str, Any]) -> None:
    expected = load_released(saved)(IDS)
    change_config(saved, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load_released(saved)(IDS), expected)


def test_missing_fields_have_the_published_defaults(tmp_path: Path) -> None:
    published = {"tied_unembed": True, "rms_norm": False, "enable_bigram_table": False, "afrac": None}
    model = a_model(**published)
    save_released(model, tmp_path)
    change_config(tmp_path, **dict.fromkeys([*published, "bias", "ln_bias", "activation_type", "d_pos_emb"], ...))
    torch.testing.assert_close(load_released(tmp_path)(IDS), model(IDS))


def test_variants_of_the_weights(saved: Path) -> None:
    expected = load_released(saved)(IDS)

    def change(state: dict[str, Tensor]) -> None:
        del state["final_logits_bias"]
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
        state["lm_head.weight"] = state["lm_head.weight"].double()

    change_state(saved, change)
    assert torch.equal(load_released(saved)(IDS), expected)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_tied_aux_matrix": True}, "use_tied_aux_matrix must be false"),
        ({"n_layer": 3}, "missing"),
        ({"n_layer": 1}, "does not fit beeg_config.json: transformer.h.1"),
        ({"n_layer": 2**40}, "too few for 1099511627776 layers"),
        ({"n_layer": 2.0}, "TypeError: n_layer must be int, got 2.0"),
        ({"n_layer": True}, "TypeError: n_layer must be int, got True"),
        ({"d_model": 2**30}, "transformer.wte.weight must be"),
        ({"d_model": "32"}, "TypeError: d_model must be int"),
        ({"n_head": 0}, "could not read"),
        ({"d_mlp": 64}, r"mlp.c_fc.weight must be \(64, 32\), float, strided; got \(128, 32\)"),
        ({"vocab_size": 41}, r"transformer.wte.weight must be \(41, 32\)"),
        ({"activation_type": "tanh"}, "activation_type must be gelu or relu"),
        ({"afrac_loctypes": "everywhere"}, "afrac_loctypes must be among"),
        ({"sink": True}, "transformer.h.0.attn.attn_imp.sink_logit"),
        ({"tied_unembed": True}, "lm_head.weight must be transformer.wte.weight"),
    ],
)
def test_configurations_that_do_not_fit(saved: Path, changes: dict[str, Any], message: str) -> None:
    change_config(saved, **changes)
    with pytest.raises(ReleasedFormatError, match=message):
        load_released(saved)


@pytest.mark.parametrize("text", ["", "[1]", "{", "nul", '{"n_layer": 1e999}', "[" * 100_000])
def test_damaged_configurations(saved: Path, text: str) -> None:
    (saved / CONFIG).write_text(text)
    with pytest.raises(ReleasedFormatError, match=f"could not read .*{CONFIG}"):
        load_released(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.ln_f.weight"), r"transformer.ln_f.weight missing \(1 in all\)"),
        (lambda s: s.update(extra=torch.ones(2)), r"does not fit beeg_config.json: extra \(1 in all\)"),
        (lambda s: s.update({"lm_head.weight": torch.ones(40, 31)}), r"must be \(40, 32\).*got \(40, 31\)"),
        (lambda s: s.update({"lm_head.weight": torch.ones(40, 32).to_sparse()}), "torch.sparse_coo"),
        (lambda s: s.update({"lm_head.weight": torch.ones(40, 32).long()}), "torch.int64"),
        (lambda s: s["lm_head.weight"].fill_(torch.nan), "lm_head.weight is not finite"),
        (lambda s: s.update({"lm_head.weight": "text"}), "expected names and tensors"),
    ],
)
def test_weights_that_do_not_fit(saved: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    change_state(saved, change)
    with pytest.raises(ReleasedFormatError, match=message):
        load_released(saved)


def test_missing_files(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(ReleasedFormatError, match="could not read .*beeg_config.json: FileNotFoundError"):
        load_released(tmp_path / "nowhere")
    (saved / WEIGHTS).unlink()
    with pytest.raises(ReleasedFormatError, match="could not read .*final_model.pt: FileNotFoundError"):
        load_released(saved)


class Trap:
    """Writes a file where a pickle is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_is_not_run(saved: Path) -> None:
    sprung = saved / "sprung"
    torch.save({"transformer.wte.weight": Trap(sprung)}, saved / WEIGHTS)
    with pytest.raises(ReleasedFormatError, match="could not read"):
        load_released(saved)
    (saved / WEIGHTS).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ReleasedFormatError, match="could not read"):
        load_released(saved)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(sprung)))
        archive.writestr("archive/version", "3\n")
    (saved / WEIGHTS).write_bytes(packed.getvalue())
    with pytest.raises(ReleasedFormatError, match="could not read"):
        load_released(saved)
    assert not sprung.exists()


def test_a_thousand_mutations_are_refused_or_harmless(tmp_path: Path) -> None:
    """Each either is refused with a message, or gives a model of the same shape that runs."""
    save_released(a_model(n_layer=1), tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    rng, refused = random.Random(0), 0
    for round_ in range(1000):
        name = (CONFIG, WEIGHTS)[round_ % 2]
        data = bytearray(files[name])
        if round_ % 10 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice([1, 1, 4, 30])):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / name).write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = load_released(tmp_path)
        except ReleasedFormatError:  # anything else would end the test
            refused += 1
        else:
            assert model(IDS[:1, :2]).shape == (1, 2, 40)
        (tmp_path / name).write_bytes(files[name])
    assert 300 < refused < 1000
