"""The command line: what it prints, how it fails, and that a killed, stopped or full-disk run loses nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from command import Command, refused
from tiny_run import corpus, logged, names, tensors, tiny

import sparsekern
from sparsekern import checkpoint, cli
from sparsekern.recipe import PRESETS, TrainConfig
from sparsekern.run_folder import load_model
from sparsekern.train import Step, Trainer

OPTIONS = {"vocab-size": 300, "d-model": 32, "n-layer": 1, "context": 16, "batch": 4, "density": 0.25}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with corpus(tmp_path_factory.mktemp("corpus")) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # of the processes started here
        patch.setenv("COLUMNS", "500")
        patch.setattr("sparsekern.train.plot_losses", lambda folder: None)  # slower than all the rest
        patch.setattr(cli.console, "width", 500)
        yield folder


@pytest.fixture(scope="module")
def finished(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from beginning to end, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    list(Trainer(tiny(sources), folder).run())
    return folder


def options(**changes: object) -> list[str]:
    return [f"--{name}={value}" for name, value in {**OPTIONS, **changes}.items()]


def process(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# ---- train


def test_train_to_the_end(sources: Path, tmp_path: Path, sparsekern_: Command) -> None:
    folder = tmp_path / "[run]"  # brackets are markup to the printer, but not here
    result = sparsekern_("train", sources, "--preset=smoke", f"--run={folder}", *options(), "--steps=11", "--seed=3")
    assert result.code == 0, result.text
    config = TrainConfig.from_json((folder / "config.json").read_text())
    changes = {name.replace("-", "_"): value for name, value in OPTIONS.items()}
    expected = {**asdict(PRESETS["smoke"]), **changes, "sources": (str(sources),), "steps": 11, "seed": 3}
    assert asdict(config) == expected
    steps = [Step(**json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step.step for step in steps] == list(range(1, 12))
    assert f"{folder}: 32,000 weights, 6,912 training and 298 held-out tokens from 150 files" in result.text
    for step in (steps[9], steps[10]):
        assert f"step {step.step} loss {step.loss:.4f} held-out {step.held_out:.4f}" in result.text
    best = min(step.held_out for step in steps if step.held_out is not None)
    assert f"Best held-out loss {best:.4f} nats per token; everything is in {folder}" in result.text


def test_resume_finishes(sources: Path, finished: Path, tmp_path: Path, sparsekern_: Command) -> None:
    for step in Trainer(tiny(sources), tmp_path / "run").run():
        if step.step == 7:
            break
    result = sparsekern_("train", "--resume", f"--run={tmp_path / 'run'}")
    assert result.code == 0, result.text
    assert logged(tmp_path / "run") == logged(finished)
    assert "12/12" in result.text


def test_unknown_preset(tmp_path: Path, sparsekern_: Command) -> None:
    message = "--preset must be one of smoke, demo, circuits, laptop, paper, got 'huge'"
    refused(sparsekern_("train", "--preset=huge", f"--run={tmp_path / 'run'}"), message)


def test_resume_takes_no_other_settings(finished: Path, sources: Path, sparsekern_: Command) -> None:
    start = f"--resume takes its settings from {finished}; leave out "
    resume = ["train", "--resume", f"--run={finished}"]
    refused(sparsekern_(*resume, "--steps=20", "--lr=1"), start + "steps, lr")
    refused(sparsekern_(*resume, sources), start + "sources")
    refused(sparsekern_(*resume, "--dtype=bf16"), start + "dtype")


def test_nothing_to_resume(tmp_path: Path, sparsekern_: Command) -> None:
    message = f"{tmp_path} holds no checkpoint to resume (last.safetensors is missing)"
    refused(sparsekern_("train", "--resume", f"--run={tmp_path}"), message)


def test_an_existing_run(finished: Path, sources: Path, sparsekern_: Command) -> None:
    before = tensors(finished / "last.safetensors")
    result = sparsekern_("train", sources, f"--run={finished}", *options())
    refused(result, f"{finished} already holds a run: resume it, or choose another folder")
    assert tensors(finished / "last.safetensors") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.02}, "density 0.02 leaves blocks.0.attn.c_attn.weight 61 nonzeros, but min_alive=4 needs 384"),
        ({"density": 2}, "density must be in (0, 1], got 2.0"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"lr": -1}, "lr must not be negative, got -1.0"),
        ({"anneal": "sudden"}, "anneal shape must be linear, geometric or fast, got 'sudden'"),
        ({"d-model": 30}, "d_model must be a multiple of d_head, got 30 and 16"),
        ({"vocab-size": 100}, "vocab_size: expected at least 257, got 100"),
        ({"context": 5000}, "context must be below the 298 held-out tokens, got 5000"),
        ({"dtype": "fp8"}, "dtype must be one of f32, bf16, got 'fp8'"),
        ({"device": "cuda:9"}, "--device cuda:9: torch sees"),
    ],
)
def test_bad_settings(
    sources: Path, tmp_path: Path, sparsekern_: Command, changes: dict[str, object], message: str
) -> None:
    refused(sparsekern_("train", sources, f"--run={tmp_path / 'run'}", *options(**changes)), message)
    assert not (tmp_path / "run").exists()


def test_a_device_with_too_little_memory(
    sources: Path, tmp_path: Path, sparsekern_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("sparsekern.models.GPT.loss", too_large)
    result = sparsekern_("train", sources, f"--run={tmp_path / 'run'}", *options())
    refused(result, "CUDA out of memory. Tried to allocate 9 GiB")


def test_missing_sources(tmp_path: Path, sparsekern_: Command) -> None:
    result = sparsekern_("train", tmp_path / "none", f"--run={tmp_path / 'run'}")
    refused(result, "sources: expected a file, a folder with *.py files or a pattern")


def test_a_folder_that_cannot_be_made(sources: Path, tmp_path: Path, sparsekern_: Command) -> None:
    (tmp_path / "file").write_text("")
    result = sparsekern_("train", sources, f"--run={tmp_path / 'file' / 'run'}", *options())
    refused(result, "[Errno 20] Not a directory")


# ---- what must not lose a run


def test_interrupt_saves_and_resume_finishes(sources: Path, tmp_path: Path, sparsekern_: Command) -> None:
    folder = tmp_path / "run"
    running = process("-m", "sparsekern", "train", sources, f"--run={folder}", *options(), "--steps=400")
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text().count("\n"):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0, out
    stopped = checkpoint.read_meta(folder / "last.safetensors")["step"]
    assert 1 <= stopped < 400
    go_on = f"sparsekern train --resume --run {folder}"
    assert f"Stopped at step {stopped}; saved. Go on with: {go_on}\n" in out
    before = logged(folder)
    assert [step for step, *_ in before] == list(range(1, stopped + 1))
    assert sparsekern_(*go_on.split()[1:]).code == 0
    assert logged(folder)[:stopped] == before
    assert [step for step, *_ in logged(folder)] == list(range(1, 401))


KILLED = """
import os, signal, sys
from pathlib import Path
from sparsekern import checkpoint, train

whole = checkpoint.save_file
saves = 0

def save_half(tensors, path, metadata):
    global saves
    whole(tensors, path, metadata)
    saves += Path(path).name == ".last.safetensors.tmp"
    if saves == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_file = save_half
train.plot_losses = lambda folder: None
config = train.TrainConfig.from_json(sys.argv[1])
for step in train.Trainer(config, Path(sys.argv[2])).run():
    pass
"""


def test_a_kill_in_the_middle_of_a_save_loses_nothing(sources: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = process("-c", KILLED, json.dumps(asdict(tiny(sources))), folder)
    out, _ = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, out
    assert (folder / ".last.safetensors.tmp").exists()
    assert checkpoint.read_meta(folder / "last.safetensors")["step"] == 3
    assert logged(folder) == logged(finished)[:6]

    resumed = process("-m", "sparsekern", "train", "--resume", "--run", folder)
    out, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, out
    assert "warning" not in out
    assert logged(folder) == logged(finished)
    for name in ("last.safetensors", "best.safetensors"):
        assert tensors(folder / name) == tensors(finished / name)
    assert names(folder) == names(finished) | {"loss.png"}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk, writing fails beyond ``size`` bytes (Python ignores the signal that would kill)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_checkpoint(sources: Path, finished: Path, tmp_path: Path, sparsekern_: Command) -> None:
    folder = tmp_path / "run"
    for step in Trainer(tiny(sources), folder).run():
        if step.step == 3:
            break
    before = (folder / "last.safetensors").read_bytes()
    with largest_file(len(before) // 2):
        result = sparsekern_("train", "--resume", f"--run={folder}")
    refused(result, f"could not write {folder}/last.safetensors: ")
    assert "File too large" in result.text
    assert "the one before it is kept" in result.text
    assert (folder / "last.safetensors").read_bytes() == before
    assert not any(name.endswith(".tmp") for name in names(folder))
    assert sparsekern_("train", "--resume", f"--run={folder}").code == 0
    assert logged(folder) == logged(finished)


def test_a_disk_too_full_for_metrics(sources: Path, finished: Path, tmp_path: Path, sparsekern_: Command) -> None:
    folder = tmp_path / "run"
    for step in Trainer(tiny(sources), folder).run():
        if step.step == 3:
            break
    with largest_file((folder / "metrics.jsonl").stat().st_size + 20):
        result = sparsekern_("train", "--resume", f"--run={folder}")
    refused(result, "[Errno 27] File too large")
    assert sparsekern_("train", "--resume", f"--run={folder}").code == 0
    assert logged(folder) == logged(finished)


def test_a_damaged_checkpoint(sources: Path, tmp_path: Path, sparsekern_: Command) -> None:
    folder = tmp_path / "run"
    for step in Trainer(tiny(sources), folder).run():
        if step.step == 3:
            break
    os.truncate(folder / "last.safetensors", 1000)
    refused(sparsekern_("train", "--resume", f"--run={folder}"), f"could not read {folder}/last.safetensors: ")


def test_warnings_are_one_line(
    sources: Path, tmp_path: Path, sparsekern_: Command, set_threads: Callable[[int], None]
) -> None:
    for step in Trainer(tiny(sources), tmp_path / "run").run():
        if step.step == 3:
            break
    threads = torch.get_num_threads()
    set_threads(threads + 1)
    result = sparsekern_("train", "--resume", f"--run={tmp_path / 'run'}")
    assert result.code == 0
    assert f"warning: the run used threads={threads}, now it is {threads + 1}: losses will differ" in result.text
    assert ".py" not in result.text


# ---- sample


def test_sample_continues_the_prompt(finished: Path, sparsekern_: Command) -> None:
    def sampled(*arguments: object) -> str:
        result = sparsekern_("sample", "def alpha", f"--run={finished}", "--tokens=30", *arguments)
        assert result.code == 0
        assert result.text.startswith("def alpha")
        return result.text

    assert sampled("--seed=1") == sampled("--seed=1")
    assert sampled("--seed=1") != sampled("--seed=2")
    assert sampled("--temperature=0", "--seed=1") == sampled("--temperature=0", "--seed=2")
    assert sampled("--tokens=0") == "def alpha"


def test_sample_prints_text_as_it_is(finished: Path, sparsekern_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.console, "width", 80)
    prompt = "x = {'[red]': 1, 'heart':heart:2}  # " + "long " * 30 + "\n\ttab"
    assert sparsekern_("sample", prompt, f"--run={finished}", "--tokens=0").out == prompt + "\n"


def test_sample_uses_the_best_model(finished: Path) -> None:
    text = cli.complete(finished, "def alpha", 5, temperature=0, seed=0)
    tokenizer = cli.load_tokenizer(finished / "tokenizer.json")
    ids = torch.tensor([tokenizer.encode("def alpha").ids])
    assert text == tokenizer.decode(load_model(finished).generate(ids, 5, temperature=0)[0].tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", ""], "prompt must not be empty"),
        (["sample", "x", "--tokens=-1"], "tokens and temperature must not be negative, got -1 and 0.7"),
        (["sample", "x", "--temperature=-1"], "tokens and temperature must not be negative, got 120 and -1.0"),
    ],
)
def test_sample_refuses(finished: Path, sparsekern_: Command, arguments: list[str], message: str) -> None:
    refused(sparsekern_(*arguments, f"--run={finished}"), message)


def test_devices_that_are_not_there(finished: Path, sparsekern_: Command) -> None:
    for command in (["train", "--resume"], ["sample", "x"]):
        refused(sparsekern_(*command, f"--run={finished}", "--device=cuda:9"), "--device cuda:9: torch sees")


def test_sample_without_a_run(tmp_path: Path, sparsekern_: Command) -> None:
    refused(sparsekern_("sample", "x", f"--run={tmp_path}"), f"could not read {tmp_path}/last.safetensors: ")


# ---- info


def test_info(sparsekern_: Command) -> None:
    result = sparsekern_("info")
    assert result.code == 0
    built = sparsekern.build_info()
    assert f"sparsekern {sparsekern.__version__}, built by {built['compiler']}" in result.text
    assert f"{torch.__version__} ({torch.get_num_threads()} threads)" in result.text
    assert f"{', '.join(built['cpu_isas'])}; this CPU has {built['cpu_isa_detected']}" in result.text
    assert f"in use {sparsekern.cpu_isa()}" in result.text
    assert "missing" not in result.text


def test_info_on_a_gpu(sparsekern_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert "GPU NVIDIA H100" in sparsekern_("info").text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "GPU none that torch sees" in sparsekern_("info").text


def test_info_names_what_is_missing(sparsekern_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "rich" else find_spec(name))
    assert "rich missing: pip install sparsekern[train]" in sparsekern_("info").text
