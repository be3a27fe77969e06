"""The command line: ``sparsekern train``, ``sample``, ``circuit``, ``bench`` and ``info``."""

import dataclasses
import importlib.util
import os
import platform
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import build_info, cli_circuits, gpu_backend, keep_freed_memory
from .bench.command import cases_for, run_cases, summarise
from .bench.record import file_name
from .checkpoint import CheckpointError
from .circuits import CircuitError, TaskError
from .data import END_OF_TEXT, SIMPLE_PYTHON, load_tokenizer
from .device import find_device
from .explain import explain
from .optim.parallel import gradient_bytes, world_size
from .recipe import PRESETS, TrainConfig, read_setting
from .run_folder import TOKENIZER, load_model, read_config
from .train import Step, Trainer, TrainingError

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
app.add_typer(cli_circuits.app, name="circuit")
console = Console()
errors = Console(stderr=True)
RESULTS = Path("benchmarks/results")
KNOWN_ERRORS = (TrainingError, CheckpointError, CircuitError, TaskError)


@app.command()
def train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs; simple-python is made-up programs. Default: the preset's."),
    ] = None,
    preset: Annotated[str, typer.Option(help=f"Where to start from: {', '.join(PRESETS)}.")] = "demo",
    run: Annotated[
        Path | None,
        typer.Option("--run", "--run-folder", help="Run folder; default: runs/<preset>. (torchrun eats --run.)"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the target density.")] = None,
    density: Annotated[float | None, typer.Option(help="Fraction of the matrices' entries that stay.")] = None,
    anneal: Annotated[str | None, typer.Option(help="Shape of the density: linear, geometric or fast.")] = None,
    d_model: Annotated[int | None, typer.Option(help="Width of the residual stream.")] = None,
    n_layer: Annotated[int | None, typer.Option(help="Layers.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Entries of the tokenizer.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    min_alive: Annotated[int | None, typer.Option(help="Nonzeros that every neuron keeps.")] = None,
    weight_blocks: Annotated[
        str | None, typer.Option(help="Side of dense blocks: 32, or mlp.c_fc=64,mlp.c_proj=64.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="sparse, or exact: with dense weight gradients to the end.")] = None,
    switch: Annotated[
        str | None, typer.Option(help="Sparse mode begins at: end-of-anneal, density (10 %) or never-dense.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the activations: f32 or bf16.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, as in --set sink=true; may be repeated (--explain-recipe)."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    explain_recipe: Annotated[
        bool, typer.Option("--explain-recipe", help="Show the paper's, its script's and this run's recipe, and end.")
    ] = False,
) -> None:
    """Train a weight-sparse GPT. Ctrl-C saves and ends; --resume goes on."""
    folder = run or Path("runs") / preset
    overrides = {name: value for name, value in locals().items() if name in _OVERRIDES and value is not None}
    overrides |= _settings(settings or [])
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if resume and (overrides or sources):
        raise ValueError(f"--resume takes its settings from {folder}; leave out {', '.join(overrides) or 'sources'}")
    if sources:
        overrides["sources"] = _absolute(sources)
    config = dataclasses.replace(PRESETS[preset], **overrides)
    if explain_recipe:
        _print_recipe(read_config(folder) if resume else config)
        return
    keep_freed_memory()
    if resume:
        trainer = Trainer.resume(folder, device=device)
    else:
        with console.status("Reading the corpus..."):
            trainer = Trainer(config, folder, device=device)
    train_with_progress(trainer)


def _settings(items: list[str]) -> dict[str, Any]:
    pairs = [item.partition("=") for item in items]
    for item, (_, equals, _) in zip(items, pairs, strict=True):
        if not equals:
            raise ValueError(f"--set expects name=value, got {item!r}")
    return {name: read_setting(name, text) for name, _, text in pairs}


def _print_recipe(config: TrainConfig) -> None:
    table = Table("rule [setting]", "paper", "its script", "this run", box=SIMPLE_HEAD)
    for rule in explain(config):
        table.add_row(*map(escape, rule))
    console.print(table)


def _absolute(sources: list[str]) -> tuple[str, ...]:
    """So that a run can be resumed from another folder."""
    return tuple(s if s == SIMPLE_PYTHON else os.path.abspath(os.path.expanduser(s)) for s in sources)


_OVERRIDES = {f.name for f in dataclasses.fields(TrainConfig)} - {"sources"}


def train_with_progress(trainer: Trainer) -> None:
    """Run a trainer to its end under a progress bar; the first Ctrl-C saves and ends, a second one kills."""
    total = sum(w.shape[0] * w.shape[1] for w in trainer.sparse_weights)
    console.quiet = not trainer.is_first
    console.print(
        f"{trainer.folder}: {total:,} weights, {len(trainer.corpus.train):,} training and "
        f"{len(trainer.corpus.held_out):,} held-out tokens from {trainer.corpus.documents:,} files",
        markup=False,
    )

    def stop(signum: int, frame: Any) -> None:
        trainer.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        with _progress() as progress:
            task = progress.add_task("starting", total=trainer.config.steps, completed=trainer.step)
            held_out: float | None = None
            for step in trainer.run():
                held_out = step.held_out if step.held_out is not None else held_out
                progress.update(task, completed=step.step, description=_status(step, held_out))
                if step.held_out is not None:
                    progress.console.print(_line(step), highlight=False)
    finally:
        signal.signal(signal.SIGINT, previous)
    if trainer.step < trainer.config.steps:
        on_device = "" if trainer.device.type == "cpu" else f" --device {trainer.device}"
        go_on = f"sparsekern train --resume --run {trainer.folder}{on_device}"
        console.print(f"Stopped at step {trainer.step}; saved. Go on with: {go_on}", markup=False, soft_wrap=True)
    else:
        text = f"Best held-out loss {trainer.best:.4f} nats per token; everything is in {trainer.folder}"
        console.print(text, markup=False)
    if world_size() > 1:
        sent, dense = gradient_bytes(trainer.sparse_weights), 4 * total
        text = f"Gradients of sparse weights that each process sent in the last step: {sent:,} bytes (dense: {dense:,})"
        console.print(text, markup=False)


def _progress() -> Progress:
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
    )


def _status(step: Step, held_out: float | None) -> str:
    known = "-" if held_out is None else f"{held_out:.3f}"
    speed = f"{step.tokens_per_second:,.0f} tokens/s"
    return f"loss {step.loss:.3f}  held-out {known}  density {step.density:.2%}  {speed}"


def _line(step: Step) -> str:
    return (
        f"step {step.step:6d}  loss {step.loss:.4f}  held-out {step.held_out:.4f}  density {step.density:7.2%}  "
        f"lr {step.lr:.4f}  {step.tokens_per_second:7,.0f} tokens/s"
    )


@app.command()
def sample(
    prompt: Annotated[str, typer.Argument(help="Text to complete.")] = "def ",
    run: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    tokens: Annotated[int, typer.Option(help="Tokens to add at most.")] = 120,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Complete a prompt with a run's best model."""
    text = complete(run, prompt, tokens, temperature, seed, find_device(device))
    typer.echo(text)  # as it is: the console would wrap and replace


def complete(
    run: Path, prompt: str, tokens: int, temperature: float, seed: int, device: torch.device | str = "cpu"
) -> str:
    """``prompt`` and what the run's best model adds to it."""
    if not prompt:
        raise ValueError("prompt must not be empty")
    if tokens < 0 or temperature < 0:
        raise ValueError(f"tokens and temperature must not be negative, got {tokens} and {temperature}")
    model, tokenizer = load_model(run, device), load_tokenizer(run / TOKENIZER)
    ids = torch.tensor([tokenizer.encode(prompt).ids], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    stop = tokenizer.token_to_id(END_OF_TEXT)
    out = model.generate(ids, tokens, temperature=temperature, generator=generator, stop=stop)
    return tokenizer.decode(out[0].tolist())


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes only, in less than two minutes.")] = False,
    op: Annotated[list[str] | None, typer.Option(help="Only ops whose name begins so; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: benchmarks/results/<device>.csv.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Time every op against dense torch, torch.sparse and the limit. Cases that have rows already are not run again."""
    where = find_device(device)
    cases = cases_for(where, op or [], quick)
    table = out or RESULTS / file_name(where)
    options = [*["--quick"] * quick, *(f"--op {shlex.quote(name)}" for name in op or []), f"--device {device}"]
    keep_freed_memory()
    right = run_cases(cases, where, table, f"sparsekern bench {' '.join(options)}", console, quick)
    if table.exists():
        summarise(table, console)
    if not right:
        raise typer.Exit(1)


@app.command()
def info() -> None:
    """Say what is built, what runs, and what is missing."""
    built = build_info()
    rows = {
        "sparsekern": f"{built['version']}, built by {built['compiler']} with torch {built['torch_built_with']}",
        "python, torch": f"{platform.python_version()}, {torch.__version__} ({torch.get_num_threads()} threads)",
        "CPU kernels": f"{', '.join(built['cpu_isas'])}; this CPU has {built['cpu_isa_detected']}",
        "in use": built["cpu_isa"],
        "GPU kernels": gpu_backend(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees",
    }
    for name in ("matplotlib", "optuna", "rich", "safetensors", "tokenizers", "typer"):
        if importlib.util.find_spec(name) is None:
            rows[name] = f"missing: pip install sparsekern[{'circuits' if name == 'optuna' else 'train'}]"
    for name, value in rows.items():
        console.print(f"{name:14} {value}", markup=False, highlight=False)


def _show_warning(message: Warning | str, *_: Any) -> None:
    errors.print(f"warning: {message}", markup=False)


def main(*command: str) -> None:
    """Entry point: errors that a user can mend become one line. ``command`` comes before the arguments given."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app([*command, *sys.argv[1:]])
    except (ValueError, OSError, torch.OutOfMemoryError, *KNOWN_ERRORS) as error:
        errors.print(f"sparsekern: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
