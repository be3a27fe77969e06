"""The switches of the recipe: what each does in a run, how they are read and explained."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command, refused
from tiny_run import TINY, corpus, logged, tensors, tiny

from sparsekern import cli
from sparsekern.explain import explain
from sparsekern.nn import SparseLinear
from sparsekern.recipe import TrainConfig, read_setting
from sparsekern.run_folder import LAST, load_model
from sparsekern.train import Trainer

MODEL_OPTIONS: dict[str, Any] = {
    "afrac_loctypes": "attn_in,resid_post_mlp",
    "activation_type": "relu",
    "residual_activation_type": "relu",
    "rms_norm": False,
    "ln_bias": False,
    "sink": True,
    "d_pos_emb": 4,
    "sinusoidal_cat_pos_emb": True,
    "dropout": 0.1,
    "dropout_cat_pos_emb": True,
    "tied_unembed": True,
    "grad_checkpointing": True,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with corpus(tmp_path_factory.mktemp("corpus")) as folder:
        yield folder


@pytest.fixture
def new(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """Makes a run in a folder of ``tmp_path``."""
    monkeypatch.setattr("sparsekern.train.plot_losses", lambda folder: None)
    return lambda name="run", **changes: Trainer(tiny(sources, **changes), tmp_path / name)


def finish(trainer: Trainer) -> Trainer:
    list(trainer.run())
    return trainer


# ---- the model's options


def test_every_option_reaches_the_model() -> None:
    model = dataclasses.replace(TINY, **MODEL_OPTIONS).model
    assert {name: getattr(model, name) for name in MODEL_OPTIONS} == MODEL_OPTIONS


@pytest.mark.parametrize("mode", ["exact", "sparse"])
def test_a_run_with_every_option_resumes_and_loads(new: Callable[..., Trainer], tmp_path: Path, mode: str) -> None:
    finish(new("whole", mode=mode, **MODEL_OPTIONS))
    interrupted = new("parts", mode=mode, **MODEL_OPTIONS)
    for step in interrupted.run():
        interrupted.stop_requested = step.step == 7
    finish(Trainer.resume(tmp_path / "parts"))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert tensors(tmp_path / "parts" / LAST) == tensors(tmp_path / "whole" / LAST)
    model = load_model(tmp_path / "whole")
    assert model.lm_head.weight is model.wte.weight


# ---- switches


def test_positions_may_stay_at_zero(new: Callable[..., Trainer]) -> None:
    learned, none = finish(new("learned")), finish(new("none", positions="none"))
    assert learned.model.wpe.weight.to_dense().any()
    assert not none.model.wpe.weight.to_dense().any()


@pytest.mark.parametrize("mode", ["exact", "sparse"])
def test_biases_may_be_sparse(new: Callable[..., Trainer], mode: str) -> None:
    dense, sparse = (
        finish(new(name, biases=name, mode=mode, embedding_density=0.3)).model for name in ("dense", "sparse")
    )
    for model, density in ((dense, 1.0), (sparse, 0.3)):
        biases = [m.bias for m in model.modules() if isinstance(m, SparseLinear) and m.bias is not None]
        assert [int((b != 0).sum()) for b in biases] == [int(density * len(b)) for b in biases]
        assert len(biases) == 4


def test_gradients_may_be_clipped(new: Callable[..., Trainer]) -> None:
    """Gradients of a mean over tokens are far below 1, so clipping leaves them as they are."""
    normalised, clipped = (finish(new(name, gradients=name)) for name in ("normalised", "clipped"))
    assert clipped.optimizer.gradients == "clipped"
    assert 0 < clipped.optimizer.gradient_rms < 0.1
    moved = [t.model.blocks[0].mlp.c_fc.bias.norm().item() for t in (normalised, clipped)]
    assert moved[1] < 0.5 * moved[0]


def test_schedules_of_the_embeddings() -> None:
    config = dataclasses.replace(TINY, steps=100, density=0.1, embedding_density=0.4, anneal="linear", anneal_end=0.5)
    published = dataclasses.replace(config, embedding_schedule="published")
    for step in (0, 10, 30, 45, 49, 50, 99):
        density, own = config.densities(step)
        assert own == pytest.approx(1 - 0.6 * min(1, step / 50))
        assert published.densities(step) == (density, pytest.approx(min(1.0, 4 * density)))
    assert published.densities(40)[1] == 1  # dense until late
    assert published.densities(99)[1] == pytest.approx(0.4)


def test_dropout_differs_from_step_to_step(new: Callable[..., Trainer], tmp_path: Path) -> None:
    finish(new("with", dropout=0.3))
    finish(new("again", dropout=0.3))
    finish(new("without"))
    assert logged(tmp_path / "with") == logged(tmp_path / "again")
    assert logged(tmp_path / "with") != logged(tmp_path / "without")


def test_nothing_is_dropped_in_evaluation(new: Callable[..., Trainer]) -> None:
    dropped, whole = new("dropped", dropout=0.9), new("whole")
    assert dropped.evaluate() == whole.evaluate()
    assert dropped.model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "sines"}, "positions must be one of learned, none, got 'sines'"),
        ({"positions": "none", "d_pos_emb": 4}, "positions must be learned where d_pos_emb concatenates them"),
        ({"gradients": "halved"}, "gradients must be one of normalised, clipped, got 'halved'"),
        ({"embedding_schedule": "late"}, "embedding_schedule must be one of own, published, got 'late'"),
        ({"biases": "none"}, "biases must be one of dense, sparse, got 'none'"),
        ({"activation_type": "tanh"}, "activation_type must be gelu or relu, got 'tanh'"),
    ],
)
def test_bad_switches_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


# ---- the command line


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("sink", "true", True),
        ("sink", "false", False),
        ("afrac", "none", None),
        ("afrac", "0.5", 0.5),
        ("d_pos_emb", "32", 32),
        ("steps", "100", 100),
        ("warmup", "1e-2", 0.01),
        ("biases", "sparse", "sparse"),
        ("weight_blocks", "32", "32"),
    ],
)
def test_settings_are_read_as_their_type(name: str, text: str, value: Any) -> None:
    found = read_setting(name, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sunk", "true", "expected one of .*sink.*; got 'sunk'"),
        ("sources", "x", "got 'sources'"),
        ("sink", "yes", "sink: expected bool, got 'yes'"),
        ("steps", "1.5", "steps: expected int, got '1.5'"),
        ("steps", "none", "steps: expected int, got 'none'"),
        ("d_pos_emb", "wide", "d_pos_emb: expected int or NoneType, got 'wide'"),
    ],
)
def test_bad_settings_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_setting(name, text)


def test_set_reaches_the_run(
    sources: Path,
    tmp_path: Path,
    sparsekern_: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsekern.train.plot_losses", lambda folder: None)
    monkeypatch.setattr(cli.console, "width", 500)
    run = tmp_path / "run"
    small = ("--preset=smoke", "--vocab-size=300", "--steps=1")
    assert sparsekern_("train", sources, f"--run={run}", *small, "--set", "sink=true", "--set=biases=sparse").code == 0
    config = TrainConfig.from_json((run / "config.json").read_text())
    assert (config.sink, config.biases) == (True, "sparse")
    refused(sparsekern_("train", sources, f"--run={run}", "--set=sink"), "--set expects name=value, got 'sink'")
    refused(sparsekern_("train", sources, f"--run={run}", "--set=sink=2"), "sink: expected bool, got '2'")


def test_the_recipe_is_explained(
    tmp_path: Path,
    sparsekern_: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli.console, "width", 500)
    result = sparsekern_("train", "--explain-recipe", "--set=gradients=clipped", f"--run={tmp_path / 'run'}")
    assert result.code == 0
    assert not (tmp_path / "run").exists()
    rules = explain(TrainConfig(gradients="clipped"))
    for rule in rules:
        assert rule.about in result.text
        assert rule.paper in result.text
    (line,) = [line for line in result.out.splitlines() if "[gradients]" in line]
    assert line.count("clipped") == 2


SWITCHES = {
    "gradients": "clipped",
    "weight_decay": 0.3,
    "lr": 0.5,
    "warmup": 0.3,
    "dtype": "bf16",
    "mode": "exact",
    "anneal": "linear",
    "anneal_start": 0.1,
    "anneal_end": 0.9,
    "embedding_schedule": "published",
    "biases": "sparse",
    "min_alive": 2,
    "positions": "none",
    "d_pos_emb": 8,
    "afrac": None,
    "afrac_loctypes": "attn_in",
    "bigram": "counts",
    "sink": True,
    "dropout": 0.5,
    "n_layer": 7,
    "d_model": 512,
    "density": 0.5,
    "batch": 3,
    "context": 31,
    "steps": 77,
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_shows_in_its_rule(name: str) -> None:
    before, after = (explain(config) for config in (TrainConfig(), TrainConfig(**{name: SWITCHES[name]})))
    changed = [a for a, b in zip(after, before, strict=True) if a != b]
    assert any(name in rule.about for rule in changed)


def test_every_setting_that_a_rule_names_exists() -> None:
    named = [rule.about.partition("[")[2].rstrip("]") for rule in explain(TrainConfig())]
    settings = {setting for item in named if item for setting in item.split(", ")}
    assert settings == set(SWITCHES)
    assert settings <= {f.name for f in dataclasses.fields(TrainConfig)}


def test_torch_is_deterministic_afterwards(new: Callable[..., Trainer]) -> None:
    """Runs without dropout do not touch the generator of others."""
    trainer = new()
    state = torch.get_rng_state()
    finish(trainer)
    assert torch.equal(torch.get_rng_state(), state)
