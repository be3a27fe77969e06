"""From a run folder to a circuit's files, and what is said where that cannot be."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command import Command, refused
from safetensors import safe_open

from sparsekern import cli, cli_circuits
from sparsekern.circuits import Circuit
from sparsekern.circuits.workbench import Workbench, steps_of
from sparsekern.recipe import TrainConfig
from sparsekern.run_folder import MEANS
from sparsekern.train import Trainer

TASK = "else_elif"  # its cue is the last token, so the count bigrams do it, and nothing has to be learned
SMALL = TrainConfig(
    sources=("simple-python",),
    vocab_size=700,
    d_model=32,
    n_layer=1,
    d_head=8,
    bigram="counts",
    context=48,
    batch=4,
    steps=2,
    density=0.25,
    eval_windows=4,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("sparsekern.data.corpus._SIMPLE_PROGRAMS", 400)
        patch.setattr("sparsekern.train.plot_losses", lambda folder: None)
        patch.setattr(cli.console, "width", 300)
        patch.setattr(cli_circuits.console, "width", 300)
        folder = tmp_path_factory.mktemp("runs") / "small"
        list(Trainer(SMALL, folder).run())
        yield folder


def test_find_writes_everything_and_resumes(run: Path, sparsekern_: Command) -> None:
    result = sparsekern_("circuit", "find", "--task", TASK, "--run", run, "--budget", 1)
    assert result.code == 0, result.text
    folder = run / "circuits" / TASK
    names = ["circuit.html", "circuit.json", "circuit.png", "circuit.safetensors", "circuit.svg"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert str(folder / "circuit.html") in result.text
    circuit = Circuit.load(folder)
    assert (len(circuit.nodes), len(circuit.edges)) == (0, 0)
    checks = circuit.about.checks
    assert checks["circuit_loss"] < 0.15
    assert checks["circuit_accuracy"] == 1.0
    assert checks["shuffled_loss"] > 0.5
    assert checks["untrained_loss"] > 0.5  # it has no bigrams
    before = (folder / "circuit.json").stat().st_mtime_ns
    assert sparsekern_("circuit", "find", "--task", TASK, "--run", run).code == 0
    assert (folder / "circuit.json").stat().st_mtime_ns == before  # it was there


def test_the_steps_are_those_that_were_announced(run: Path, tmp_path: Path) -> None:
    bench, steps = Workbench(run), []
    bench.folder = tmp_path
    bench.find(TASK, budget=2, on_step=lambda: steps.append(1))
    assert len(steps) == steps_of(2)


def test_tasks_are_listed_with_what_stands_in_their_way(run: Path, sparsekern_: Command) -> None:
    result = sparsekern_("circuit", "tasks", "--run", run)
    assert result.code == 0, result.text
    for part in ("else_elif `:` vs not", "100.0%", "lambda_func"):
        assert part in result.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "quotes"], "--task must be one of single_double_quote, .*; got 'quotes'"),
        (["--task", "for_while"], r"for_while: the model cannot do it \(it is right in \d+%"),
        ([], "give --task NAME or --all-tasks"),
        (["--task", TASK, "--all-tasks"], "give --task NAME or --all-tasks"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    run: Path, sparsekern_: Command, arguments: list[str], message: str
) -> None:
    result = sparsekern_("circuit", "find", "--run", run, *arguments)
    assert result.code == 2
    assert re.fullmatch(f"(Reading.* )?sparsekern: {message}.*", result.text), result.text


def test_a_run_that_is_none_is_said_in_a_line(sparsekern_: Command, tmp_path: Path) -> None:
    refused(sparsekern_("circuit", "find", "--task", TASK, "--run", tmp_path / "nothing"), "could not read")


def test_a_tokenizer_without_the_tokens_is_said_in_a_line(
    run: Path, sparsekern_: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "few"
    list(Trainer(replace(SMALL, vocab_size=260), folder).run())
    result = sparsekern_("circuit", "find", "--task", "enumerate_range", "--run", folder)
    refused(result, "enumerate_range: only 0 of 512 pairs fit this tokenizer (no single tokens for")


def test_means_are_kept_for_this_model_alone(run: Path) -> None:
    first = Workbench(run).subject.means
    written = (run / MEANS).stat().st_mtime_ns
    again = Workbench(run).subject.means
    assert (run / MEANS).stat().st_mtime_ns == written
    assert all(first[name].equal(again[name]) for name in first)
    with safe_open(run / MEANS, framework="pt") as file:
        assert set(file.keys()) == set(first)
    (run / MEANS).write_bytes(b"damaged")
    assert all(first[name].equal(mean) for name, mean in Workbench(run).subject.means.items())
