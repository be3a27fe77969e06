"""Training: what a run leaves behind, how it goes on, and how it fails."""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_run import TINY, corpus, logged, losses, names, tensors, tiny, write_sources
from torch import Tensor

import sparsekern
from sparsekern import checkpoint
from sparsekern.data import bigram_probabilities, held_out_batches, load_corpus
from sparsekern.models import GPT
from sparsekern.recipe import PRESETS, TrainConfig
from sparsekern.run_folder import load_model, read_metrics
from sparsekern.train import Step, Trainer, TrainingError

FILES = {"config.json", "metrics.jsonl", "loss.png", "last.safetensors", "best.safetensors", "tokenizer.json"}


class Run(NamedTuple):
    folder: Path
    steps: list[Step]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with corpus(tmp_path_factory.mktemp("corpus")) as folder:
        yield folder


@pytest.fixture(scope="module")
def finished(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run from beginning to end, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return Run(folder, list(Trainer(tiny(sources), folder).run()))


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest of a tiny run."""
    monkeypatch.setattr("sparsekern.train.plot_losses", lambda folder: None)


@pytest.fixture
def new(sources: Path, tmp_path: Path, no_plot: None) -> Callable[..., Trainer]:
    """Makes a run in ``tmp_path / "run"``."""
    return lambda **changes: Trainer(tiny(sources, **changes), tmp_path / "run")


def run_to(trainer: Trainer, step: int) -> list[Step]:
    """Run up to ``step`` and stop there as if killed: nothing is saved that was not saved before."""
    steps = []
    for result in trainer.run():
        steps.append(result)
        if result.step == step:
            break
    return steps


# ---- a whole run


def test_a_run_leaves_its_files(finished: Run) -> None:
    assert names(finished.folder) == FILES
    assert (finished.folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert checkpoint.read_meta(finished.folder / "last.safetensors")["step"] == 12


def test_every_step_is_reported_and_logged(finished: Run, sources: Path) -> None:
    assert [step.step for step in finished.steps] == list(range(1, 13))
    assert read_metrics(finished.folder) == [asdict(step) for step in finished.steps]
    assert [step.step for step in finished.steps if step.held_out is not None] == [5, 10, 12]
    assert all(step.tokens_per_second > 0 for step in finished.steps)
    assert TrainConfig.from_json((finished.folder / "config.json").read_text()) == tiny(sources)


def test_it_learns(finished: Run) -> None:
    held_out = [step.held_out for step in finished.steps if step.held_out is not None]
    assert finished.steps[0].loss == pytest.approx(math.log(300), rel=0.01)
    assert held_out == sorted(held_out, reverse=True)
    assert held_out[-1] < math.log(300) - 1


def test_schedules_are_followed(finished: Run) -> None:
    config = TINY
    for step in finished.steps:
        t = min(1.0, (step.step - 1) / 12 / 0.5)  # the anneal takes half of the run; fast is geometric at 25 %
        assert step.density == pytest.approx(0.25**t, abs=1e-3)  # what is kept is a whole number
        decay = 1 - (step.step - 1) / 12
        warmup = min(1.0, (step.step - 1) / 0.12)
        assert step.lr == pytest.approx(config.lr * warmup * decay * math.sqrt(0.25 / 0.25**t))


def test_nonzeros_are_exact(finished: Run, sources: Path) -> None:
    blocks = {"c_attn": 96 * 32, "c_proj": 32 * 32, "c_fc": 128 * 32, "mlp.c_proj": 32 * 128}
    embeddings = {"wte": 300 * 32, "wpe": 16 * 32, "lm_head": 300 * 32}
    for step in finished.steps:
        t = min(1.0, (step.step - 1) / 12 / 0.5)
        expected = sum(int(0.25**t * n) for n in blocks.values())
        target = 0.25 * 32 / 256
        knee = max(0.1, 10 * target)
        e = knee ** (t / 0.2) if t < 0.2 else knee * (target / knee) ** ((t - 0.2) / 0.8)
        assert step.nnz == expected + sum(int(e * n) for n in embeddings.values()), step.step
    model = load_model(finished.folder)
    assert [w.nnz for w in model.matrices()] == [n // 4 for n in blocks.values()]
    assert [w.nnz for w in model.embeddings()] == [n // 32 for n in embeddings.values()]
    assert sum(int(w.values.count_nonzero()) for w in model.matrices()) == 12288 // 4


def test_neurons_stay_alive(finished: Run) -> None:
    for weight, axis in zip(load_model(finished.folder).matrices(), [0, 1, 0, 1], strict=True):
        assert (weight.to_dense() != 0).sum(1 - axis).min() >= 4


def test_the_best_model_has_the_best_loss(finished: Run, sources: Path) -> None:
    sparse = [step for step in finished.steps if step.density <= finished.steps[-1].density]
    best = min(step.held_out for step in sparse if step.held_out is not None)
    meta = checkpoint.read_meta(finished.folder / "best.safetensors")
    model = load_model(finished.folder)
    assert (meta["best"], model.training) == (best, False)
    held_out = load_corpus([sources], vocab_size=300).held_out
    (ids, targets), *more = held_out_batches(held_out, batch=4, context=16, count=4)
    assert more == []
    assert model.loss(ids, targets).item() == pytest.approx(best, rel=1e-5)


def test_neither_a_worse_nor_a_denser_model_is_the_best(new: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = new()
    trainer.evaluate = iter([1.0, 2.0, 4.0]).__next__  # at step 5 the density has not come down yet
    list(trainer.run())
    meta = checkpoint.read_meta(tmp_path / "run" / "best.safetensors")
    assert (meta["step"], meta["best"], trainer.best) == (10, 2.0, 2.0)


def test_a_seed_decides_a_run(new: Callable[..., Trainer], finished: Run, sources: Path, tmp_path: Path) -> None:
    assert losses(new().run()) == losses(finished.steps)
    other = Trainer(tiny(sources, seed=1), tmp_path / "other")
    assert next(other.run()).loss != finished.steps[0].loss


# ---- going on


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    new: Callable[..., Trainer], finished: Run, tmp_path: Path, stop: int
) -> None:
    folder, trainer, steps = tmp_path / "run", new(), []
    for step in trainer.run():
        steps.append(step)
        trainer.stop_requested = step.step == stop
    assert [step.step for step in steps] == list(range(1, stop + 1))
    resumed = Trainer.resume(folder)
    assert resumed.step == stop
    steps += resumed.run()
    assert losses(steps) == losses(finished.steps) == logged(folder)
    for name in ("last.safetensors", "best.safetensors"):
        assert tensors(folder / name) == tensors(finished.folder / name)
    assert resumed.best == checkpoint.read_meta(finished.folder / "last.safetensors")["best"]


def test_steps_after_the_last_checkpoint_are_done_again(
    new: Callable[..., Trainer], finished: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run_to(new(), 5)
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 6, "lo')  # a kill in the middle of a line
    resumed = Trainer.resume(folder)
    assert resumed.step == 3
    assert logged(folder) == losses(finished.steps[:3])
    assert losses(resumed.run()) == losses(finished.steps[3:])
    assert logged(folder) == losses(finished.steps)


def test_a_finished_run_stays_as_it_is(new: Callable[..., Trainer], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = new()
    before = losses(trainer.run())
    again = Trainer.resume(folder)
    assert list(again.run()) == []
    assert (again.best, logged(folder)) == (trainer.best, before)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    new: Callable[..., Trainer], finished: Run, tmp_path: Path
) -> None:
    run_to(new(), 2)
    assert losses(new().run()) == losses(finished.steps) == logged(tmp_path / "run")


def test_other_threads_are_warned_of(
    new: Callable[..., Trainer], tmp_path: Path, set_threads: Callable[[int], None]
) -> None:
    threads = torch.get_num_threads()
    run_to(new(), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer.resume(tmp_path / "run")
    set_threads(threads + 1)
    expected = f"used threads={threads}, now it is {threads + 1}: losses will differ in the last digits"
    with pytest.warns(UserWarning, match=expected):
        Trainer.resume(tmp_path / "run")


def test_another_instruction_set_is_warned_of(
    new: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_to(new(), 3)
    monkeypatch.setattr("sparsekern.train.cpu_isa", lambda: "another")
    with pytest.warns(UserWarning, match=f"used cpu_isa={sparsekern.cpu_isa()}, now it is another"):
        Trainer.resume(tmp_path / "run")


# ---- refusals


def test_an_existing_run_is_not_overwritten(finished: Run, sources: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.folder.iterdir()}
    with pytest.raises(TrainingError, match=f"{finished.folder} already holds a run: resume it, or choose another"):
        Trainer(tiny(sources, steps=3), finished.folder)
    assert {path.name: path.read_bytes() for path in finished.folder.iterdir()} == before


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no checkpoint to resume"):
        Trainer.resume(tmp_path)


def test_a_changed_corpus_is_refused(tmp_path: Path, sources: Path, no_plot: None) -> None:
    own = write_sources(tmp_path / "own")
    run_to(Trainer(tiny(own), tmp_path / "run"), 3)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    (own / "more.py").write_text("more = 1\n")
    with pytest.raises(TrainingError, match="the corpus has changed since the run began"):
        Trainer.resume(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (own / "more.py").unlink()
    assert Trainer.resume(tmp_path / "run").step == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"steps": 0}', '{"unknown": 1}', '{"steps": "many"}'])
def test_a_damaged_configuration_is_refused(new: Callable[..., Trainer], tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run"
    run_to(new(), 3)
    (folder / "config.json").write_text(text)
    with pytest.raises(TrainingError, match=f"could not read {folder}/config.json: "):
        Trainer.resume(folder)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "KeyError: 'model'"),
        ({"model": {"later_option": True}}, "TypeError: .*later_option"),
        ({"model": {"d_model": 30}}, "ValueError: d_model must be a multiple"),
        ({"model": [1]}, "TypeError"),
    ],
)
def test_a_model_of_another_version_is_refused(tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    checkpoint.save_weights(tmp_path / "best.safetensors", torch.nn.Linear(2, 2), meta)
    with pytest.raises(checkpoint.CheckpointError, match=f"best.safetensors is of another version: {message}"):
        load_model(tmp_path)


def test_a_density_too_low_for_the_floor_is_refused(new: Callable[..., Trainer], tmp_path: Path) -> None:
    message = (
        r"density 0.1 leaves blocks.0.attn.c_attn.weight 307 nonzeros, but min_alive=4 needs 384: "
        "raise density or lower min_alive"
    )
    with pytest.raises(ValueError, match=message):
        new(density=0.1)
    assert not (tmp_path / "run").exists()
    assert new(density=0.1, min_alive=3).config.min_alive == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"save_every": -1}, "save_every must be positive, got -1"),
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.1}, r"density must be in \(0, 1\], got 1.1"),
        ({"embedding_density": 1.1}, r"embedding_density must be in \(0, 1\], got 1.1"),
        ({"min_alive": -1}, "min_alive must not be negative, got -1"),
        ({"anneal": "sudden"}, "anneal shape must be"),
        ({"anneal_end": 1.0}, "0 <= start < end < 1"),
        ({"afrac": 0.01}, "afrac must keep at least one of 32 channels, got 0.01"),
        ({"bigram": "trigram"}, "bigram must be one of learned, counts, got 'trigram'"),
        ({"d_head": 5}, "d_model must be a multiple of d_head, got 32 and 5"),
        ({"afrac": 2.0}, "afrac must be in"),
        (
            {"weight_blocks": "mlp.c_gate=16"},
            "weight_blocks must be a side, .*got 'mlp.c_gate=16'",
        ),
        ({"weight_blocks": "mlp.c_fc"}, "weight_blocks must be a side"),
        ({"weight_blocks": "4"}, "weight_blocks must be a side, 16, 32, 64, 128, or sides of .*; got '4'"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_a_corpus_shorter_than_the_context_is_refused_at_once(new: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"context must be below the \d+ held-out tokens, got 400"):
        new(context=400)
    assert not (tmp_path / "run").exists()


# ---- numbers that are not finite


def spoil_parameter(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.model.blocks[0].ln_2.weight[3] = torch.nan


def spoil_unused_row(trainer: Trainer) -> None:
    with torch.no_grad():  # no loss shows it
        trainer.model.wte.weight.master[299, 3] = torch.nan


def spoil_gradient(trainer: Trainer) -> None:
    trainer.model.blocks[0].mlp.c_fc.bias.register_hook(lambda grad: grad * torch.nan)


def overflow(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.model.ln_f.weight.fill_(3e38)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_parameter, "step 5: parameter blocks.0.ln_2.weight is not finite"),
        (spoil_unused_row, "step 5: parameter wte.weight.master is not finite"),
        (spoil_gradient, "step 5: the gradient of blocks.0.mlp.c_fc.bias is not finite"),
        (overflow, "step 5: the output of ln_f is not finite"),
    ],
)
def test_what_is_not_finite_is_named(
    new: Callable[..., Trainer], finished: Run, tmp_path: Path, spoil: Callable[[Trainer], None], message: str
) -> None:
    folder, trainer = tmp_path / "run", new()
    run = trainer.run()
    for _ in range(4):
        next(run)
    spoil(trainer)
    with pytest.raises(TrainingError, match=f"^{message}$"):
        next(run)
    assert logged(folder) == losses(finished.steps[:4])
    resumed = Trainer.resume(folder)  # from the checkpoint before
    assert resumed.step == 3
    assert losses(resumed.run()) == losses(finished.steps[3:])


def test_a_gradient_that_is_not_finite_changes_no_parameter(new: Callable[..., Trainer]) -> None:
    trainer = new()
    run_to(trainer, 2)
    spoil_gradient(trainer)
    before = {name: p.tolist() for name, p in trainer.model.named_parameters()}
    with pytest.raises(TrainingError):
        next(trainer.run())
    assert {name: p.tolist() for name, p in trainer.model.named_parameters()} == before


# ---- the bigram table


def test_counted_bigrams_are_the_model_to_begin_with(new: Callable[..., Trainer]) -> None:
    trainer = new(bigram="counts")
    table = trainer.model.bigram_table
    first, second = np.divmod(np.arange(300 * 300), 300)
    expected = bigram_probabilities(trainer.corpus.train, first, second, 300).reshape(300, 300)
    torch.testing.assert_close(table.softmax(-1), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-7)
    before = table.tolist()
    run_to(trainer, 3)
    assert table.tolist() == before  # it is fixed
    assert trainer.model.bigram_table is table


def test_the_bigram_table_is_learned_by_default(new: Callable[..., Trainer]) -> None:
    trainer = new()
    before = trainer.model.bigram_table.tolist()
    run_to(trainer, 3)
    assert trainer.model.bigram_table.tolist() != before


# ---- presets


def matrices(config: TrainConfig) -> dict[str, tuple[tuple[int, int], int]]:
    """Shape of each block matrix and axis of its neurons."""
    d, width, mlp = config.d_model, config.model.heads * config.d_head, config.model.mlp_width
    return {
        "attn.c_attn": ((3 * width, d), 0),
        "attn.c_proj": ((d, width), 1),
        "mlp.c_fc": ((mlp, d), 0),
        "mlp.c_proj": ((d, mlp), 1),
    }


def test_matrices_are_those_of_the_model() -> None:
    config = dataclasses.replace(TINY, d_model=48, d_head=16, d_mlp=80)
    block = GPT(config.model).blocks[0]
    for name, (shape, axis) in matrices(config).items():
        weight = block.get_submodule(name).weight
        assert (weight.shape, weight.axis) == (shape, axis)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_leave_every_neuron_its_floor(name: str) -> None:
    config = PRESETS[name]
    for matrix, (shape, axis) in matrices(config).items():
        assert int(config.density * shape[0] * shape[1]) >= config.min_alive * shape[axis], matrix
    assert 0 < config.target_embedding_density <= 1
    assert int(config.target_embedding_density * config.d_model) >= 1  # a nonzero per token, on average
    last = config.schedule(config.density).density(config.steps - 1, config.steps, config.density)
    assert last == pytest.approx(config.density)


def test_the_paper_preset_is_the_published_run() -> None:
    config = PRESETS["paper"]
    assert config.batch * config.context == 131_072
    assert config.steps * config.batch * config.context == pytest.approx(32e9, rel=1e-5)
    assert (config.d_model, config.n_layer, config.density, config.vocab_size) == (2048, 8, 1 / 512, 2048)
    nonzeros = config.n_layer * sum(int(n * k * config.density) for (n, k), _ in matrices(config).values())
    assert nonzeros == 8 * 256 * 256 * 12 // 8  # pfrac 1/8 of the small model's matrices


def test_metrics_are_json(finished: Run) -> None:
    for line in (finished.folder / "metrics.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {f.name for f in dataclasses.fields(Step)}


def test_the_optimizer_sees_every_parameter(new: Callable[..., Trainer]) -> None:
    trainer = new()
    seen: list[Tensor] = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in seen} == {id(p) for p in trainer.model.parameters()}
    assert len(seen) == len(list(trainer.model.parameters()))


# ---- sparse mode


FORMS = {  # of the weights after 3, 6, 9 and 12 steps; the anneal ends with step 7, 40 % is reached with step 5
    "end-of-anneal": ["master", "master", "active", "active"],
    "density": ["master", "active", "active", "active"],
    "never-dense": ["active"] * 4,
}


@pytest.mark.parametrize("switch", FORMS)
def test_it_switches_where_it_should(new: Callable[..., Trainer], switch: str) -> None:
    trainer = new(switch=switch, switch_density=0.4, refresh_every=3, start_factor=3.0)
    forms, nonzeros = [], []
    for step in trainer.run():
        nonzeros.append(step.nnz)
        if step.step % 3 == 0:
            forms.append({w.form for w in trainer.sparse_weights})
    assert forms == [{form} for form in FORMS[switch]]
    assert [w.nnz for w in trainer.model.matrices()] == [w.shape[0] * w.shape[1] // 4 for w in trainer.model.matrices()]
    moved = [a != b for a, b in pairwise(nonzeros)]
    if switch == "never-dense":  # in stages: after steps 1, 4, 7 and 10
        assert moved == [False, False, True, False, False, True, False, False, False, False, False]
        for weight in trainer.sparse_weights:
            state = trainer.optimizer.state[weight.active]
            assert all(t.numel() <= len(weight.active) <= 2 * weight.nnz for t in state.values())


@pytest.mark.parametrize("anneal", ["linear", "geometric", "fast"])
@pytest.mark.parametrize("density", [0.25, 0.2, 0.1, 0.0065108696408542775])
def test_every_anneal_ends_in_sparse_mode(anneal: str, density: float) -> None:
    config = dataclasses.replace(TINY, anneal=anneal, density=density, steps=1000, min_alive=0)
    schedule = config.schedule(density)
    for switch, at in (("end-of-anneal", 500), ("density", 500)):
        config = dataclasses.replace(config, switch=switch)
        switched = [t for t in range(1000) if config.is_sparse_after(schedule.density(t, 1000, density))]
        assert switched == list(range(switched[0], 1000))
        assert switched[0] == at or (switch == "density" and 0 < switched[0] < at)


def test_exact_mode_stays_exact(new: Callable[..., Trainer]) -> None:
    trainer = new(mode="exact")
    list(trainer.run())
    assert {w.form for w in trainer.sparse_weights} == {"master"}


@pytest.mark.parametrize("switch", FORMS)
@pytest.mark.parametrize("stop", [4, 7, 8])
def test_sparse_runs_resume_bit_for_bit(sources: Path, tmp_path: Path, no_plot: None, switch: str, stop: int) -> None:
    """Before, at and after a refresh and the switch."""
    changes = {"switch": switch, "switch_density": 0.4, "refresh_every": 3, "start_factor": 3.0, "save_every": 1}
    whole = Trainer(tiny(sources, **changes), tmp_path / "whole")
    expected = losses(whole.run())
    part = Trainer(tiny(sources, **changes), tmp_path / "part")
    for step in part.run():
        if step.step == stop:
            part.stop_requested = True
    resumed = Trainer.resume(tmp_path / "part")
    assert losses(resumed.run()) == expected[stop:]
    for ours, theirs in zip(resumed.sparse_weights, whole.sparse_weights, strict=True):
        assert ours.form == "active"
        assert torch.equal(ours.active, theirs.active)
        assert torch.equal(ours.active_col_indices, theirs.active_col_indices)


# ---- blocks


@pytest.mark.parametrize("switch", FORMS)
def test_runs_of_blocks_resume_and_load(sources: Path, tmp_path: Path, no_plot: None, switch: str) -> None:
    changes = {"switch": switch, "switch_density": 0.8, "refresh_every": 3, "start_factor": 1.5, "save_every": 1}
    config = tiny(sources, **changes, weight_blocks="attn.c_attn=16,mlp.c_proj=16", density=0.5, min_alive=2)
    expected = losses(Trainer(config, tmp_path / "whole").run())
    part = Trainer(config, tmp_path / "part")
    for step in part.run():
        part.stop_requested = step.step == 8
    assert losses(Trainer.resume(tmp_path / "part").run()) == expected[8:]
    model = load_model(tmp_path / "part")
    kinds = {
        name: module.block for name, module in model.named_modules() if isinstance(module, sparsekern.nn.SparseWeight)
    }
    assert kinds["blocks.0.attn.c_attn.weight"] == (16, 16)
    assert kinds["blocks.0.mlp.c_proj.weight"] == (16, 16)
    assert kinds["blocks.0.mlp.c_fc.weight"] is None
    assert [w.nnz for w in model.matrices()] == [int(0.5 * w.positions) for w in model.matrices()]
