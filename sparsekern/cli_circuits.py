"""The command line's ``sparsekern circuit``: tasks that a run can do, and the circuits that do them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import keep_freed_memory
from .circuits import TARGET, TASKS, Circuit, TaskError
from .circuits.circuit import DESCRIPTION
from .circuits.workbench import Workbench, steps_of
from .device import find_device

app = typer.Typer(no_args_is_help=True, help="Find, check and look at the circuits of a trained model.")
console = Console()

Run = Annotated[Path, typer.Option(help="Run folder.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]


@app.command()
def tasks(run: Run = Path("runs/circuits"), device: Device = "cpu") -> None:
    """List the tasks, with an example, and how well the model does them."""
    bench = _open(run, device)
    table = Table("task", "decides", "example", "accuracy", "loss", box=SIMPLE_HEAD)
    for name in TASKS:
        try:
            task = bench.task(name)
        except TaskError as error:
            table.add_row(name, "", str(error), "", "")
            continue
        right, loss = bench.subject.accuracy(task.test), bench.subject.loss(task.test)
        (prompt, _), (answer, _) = task.example
        example = f"{prompt}⟨{answer}⟩".replace("\n", "↵")
        table.add_row(name, task.between, example, f"{right:.1%}", f"{loss:.3f}")
    console.print(table, markup=False)


@app.command()
def find(
    task: Annotated[list[str] | None, typer.Option(help="Name of a task; may be repeated.")] = None,
    all_tasks: Annotated[bool, typer.Option("--all-tasks", help="Every task that the model can do.")] = False,
    run: Run = Path("runs/circuits"),
    target: Annotated[float, typer.Option(help="Task loss in nats that a circuit may have.")] = TARGET,
    budget: Annotated[int, typer.Option(min=1, help="Masks that are learned for each task and control.")] = 4,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Search where there is a circuit already, too.")] = False,
    device: Device = "cpu",
) -> None:
    """Find the circuits of tasks, check them, and write them with a page and pictures into the run folder."""
    if bool(task) == all_tasks:
        raise ValueError("give --task NAME or --all-tasks")
    for name in task or []:
        if name not in TASKS:
            raise TaskError(f"--task must be one of {', '.join(TASKS)}; got {name!r}")
    bench = _open(run, device)
    circuits: list[Circuit] = []
    for name in task or TASKS:
        folder = bench.circuit_folder(name)
        if (folder / DESCRIPTION).exists() and not again:
            circuits.append(Circuit.load(folder))
            continue
        try:
            with _progress(name, steps_of(budget)) as advance:
                circuits.append(bench.find(name, target=target, budget=budget, seed=seed, on_step=advance))
        except TaskError as error:
            if not all_tasks:
                raise
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
    _summarise(circuits, bench)


def _open(run: Path, device: str) -> Workbench:
    keep_freed_memory()
    with console.status("Reading the run and its corpus..."):
        return Workbench(run, find_device(device))


@contextmanager
def _progress(name: str, total: int) -> Iterator:
    columns = (TextColumn(name), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(name, total=total)
        yield lambda: progress.advance(bar)


def _summarise(circuits: list[Circuit], bench: Workbench) -> None:
    """The sizes and the losses that matter most; the pages have the rest."""
    table = Table(box=SIMPLE_HEAD, caption="losses in nats per sequence, on held-out pairs")
    for heading in ("task", "nodes", "edges", "circuit", "model", "shuffled", "untrained"):
        table.add_column(heading, no_wrap=True)
    for circuit in circuits:
        checks = circuit.about.checks
        losses = ("circuit_loss", "model_loss", "shuffled_loss", "untrained_loss")
        table.add_row(
            circuit.about.task,
            f"{len(circuit.nodes):,}",
            f"{len(circuit.edges):,}",
            *(f"{checks[name]:.3f}" for name in losses),
        )
    console.print(table)
    edges = [len(circuit.edges) for circuit in circuits if circuit.edges]
    if len(edges) > 1:
        mean = math.exp(sum(map(math.log, edges)) / len(edges))
        console.print(f"geometric mean of the edges: {mean:.1f} ({len(edges)} circuits with edges)")
    for circuit in circuits:
        console.print(str(bench.circuit_folder(circuit.about.task) / "circuit.html"), soft_wrap=True, highlight=False)
