"""How large are the circuits of a sparse model, and of a dense one of the same held-out loss? (the paper: 16 times)

    python benchmarks/circuits.py models      trains the sparse model and dense ones of several widths
    python benchmarks/circuits.py circuits    finds the circuits of the tasks that both can do, at several losses
    python benchmarks/circuits.py tables      prints the table and draws the picture

Every row is appended to results/circuits_cpu.csv when it is done; what has a row is not run again. Models are in
runs/circuits-study; training goes on where it was stopped. Hours of two cores.
"""

import argparse
import csv
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console

from sparsekern import keep_freed_memory
from sparsekern.bench.circuits import MODELS, SPARSE, TARGETS, able_tasks, circuit_size, ratio_of_means, train
from sparsekern.bench.record import append_rows, device_name
from sparsekern.circuits import TASKS
from sparsekern.circuits.workbench import Workbench

RESULTS = Path(__file__).parent / "results"
ROWS, PICTURE = RESULTS / "circuits_cpu.csv", RESULTS / "circuits.png"
FOLDER = Path("runs/circuits-study")
KEY = ("model", "task", "target")
FIELDS = (*KEY, "held_out", "accuracy", "nodes", "edges", "nodes_before", "edges_before", "test_loss", "seconds")
FIELDS += ("device", "torch", "command")
console = Console(soft_wrap=True, highlight=False)


def rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with open(ROWS, newline="") as file:
        return list(csv.DictReader(file))


def has(model: str, task: str = "", target: str = "") -> bool:
    return any((r["model"], r["task"], r["target"]) == (model, task, target) for r in rows())


def add(row: dict[str, object]) -> None:
    about = {"device": device_name(), "torch": torch.__version__, "command": " ".join(["python", *sys.argv])}
    append_rows(ROWS, [{**row, **about}], FIELDS)
    console.print(*(f"{name}={value}" for name, value in row.items()))


def folder_of(model: str) -> Path:
    return FOLDER / model.replace(", ", "-").replace(" ", "-")


def study_models() -> None:
    for model in MODELS:
        if not has(model):
            started = time.perf_counter()
            held_out = train(model, folder_of(model))
            add({"model": model, "held_out": held_out, "seconds": time.perf_counter() - started})


def bench_of(model: str) -> Workbench:
    """Its run, trained again where it has a row but no folder: rows are kept in the repository, runs are not."""
    train(model, folder_of(model))
    return Workbench(folder_of(model))


def held_out_losses() -> dict[str, float]:
    return {r["model"]: float(r["held_out"]) for r in rows() if not r["task"]}


def equal_dense() -> str:
    """The dense model whose held-out loss is closest to the sparse one's."""
    losses = held_out_losses()
    if set(losses) != set(MODELS):
        sys.exit("train all models first: python benchmarks/circuits.py models")
    return min((m for m in MODELS if m != SPARSE), key=lambda m: abs(losses[m] - losses[SPARSE]))


def study_circuits() -> None:
    compared = [SPARSE, equal_dense()]
    benches = {model: bench_of(model) for model in compared}
    able = able_tasks(list(benches.values()), TASKS)
    console.print(f"{' and '.join(compared)}: {len(able)} tasks: {', '.join(able)}")
    for target in TARGETS:
        for task, right in able.items():
            for (model, bench), accuracy in zip(benches.items(), right, strict=True):
                if has(model, task, str(target)):
                    continue
                started = time.perf_counter()
                size = circuit_size(bench, task, target)
                seconds = time.perf_counter() - started
                row: dict[str, object] = {"model": model, "task": task, "target": target, "accuracy": accuracy}
                add({**row, **({} if size is None else asdict(size)), "seconds": seconds})


def both_of(target: float, column: str) -> dict[str, tuple[float, float]]:
    """Task -> what the sparse and the dense model need."""
    dense = equal_dense()
    of = {(r["model"], r["task"]): r[column] for r in rows() if r["target"] == str(target) and r[column]}
    tasks = [task for model, task in of if model == SPARSE and (dense, task) in of]
    return {task: (float(of[SPARSE, task]), float(of[dense, task])) for task in tasks}


def print_tables() -> None:
    losses, dense = held_out_losses(), equal_dense()
    print(f"held-out loss: sparse {losses[SPARSE]:.3f}, {dense} {losses[dense]:.3f}\n")
    print("| task loss | tasks | edges | edges before any is cut | nodes |\n| ---: | ---: | ---: | ---: | ---: |")
    for target in sorted(TARGETS):
        cells = []
        for column in ("edges", "edges_before", "nodes"):
            pairs = list(both_of(target, column).values())
            if pairs:
                ratio, low, high = ratio_of_means(pairs)
                cells.append(f"{ratio:.1f} ({low:.1f} to {high:.1f})")
        if cells:
            print(f"| {target} | {len(pairs)} | {' | '.join(cells)} |")
    print(f"\n| task | sparse: nodes, edges | {dense}: nodes, edges |\n| --- | ---: | ---: |")
    nodes, edges = both_of(TARGETS[0], "nodes"), both_of(TARGETS[0], "edges")
    for task in edges:
        ours, theirs = (f"{nodes[task][i]:.0f}, {edges[task][i]:.0f}" for i in (0, 1))
        print(f"| {task} | {ours} | {theirs} |")
    draw()


def draw() -> None:
    """Edges of each task's circuit in both models, at each loss."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for target, marker in zip(sorted(TARGETS), "vos", strict=True):
        pairs = both_of(target, "edges").values()
        axes.scatter(
            [max(a, 1) for a, _ in pairs], [max(b, 1) for _, b in pairs], marker=marker, label=f"{target} nats"
        )
    reach = [1, max(axes.get_xlim()[1], axes.get_ylim()[1])]
    axes.plot(reach, reach, color="grey", linewidth=0.8)
    axes.plot(reach, [16 * x for x in reach], color="grey", linewidth=0.8, linestyle=":")
    axes.text(1.1, 19, "16 times", color="grey")
    axes.set(xscale="log", yscale="log", xlabel="edges, sparse model", ylabel=f"edges, {equal_dense()}")
    axes.legend(title="task loss")
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = {"models": study_models, "circuits": study_circuits, "tables": print_tables}
    parser.add_argument("study", choices=studies)
    keep_freed_memory()
    studies[parser.parse_args().study]()


if __name__ == "__main__":
    main()
