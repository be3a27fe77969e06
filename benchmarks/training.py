"""Studies of training: whole runs on the CPU, one row per run in results/training_cpu.csv; a re-run skips these.

    python benchmarks/training.py tune | parity | norm [--workers 2] [--seeds 0 1 2] [--settings "256 wide, 2 %" ...]

tune: the learning rate of exact mode.  parity: exact mode against sparse mode at each switch point and against other
rules.  norm: ways to know the gradient's norm.  Runs of one setting and seed share data, initial weights and, where a
method takes over from exact mode, its checkpoint.
"""

import argparse
import csv
import multiprocessing as mp
import os
import platform
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sparsekern import keep_freed_memory
from sparsekern.bench.studies import METHODS, SETTINGS, one_thread, run

RESULTS = Path(__file__).parent / "results" / "training_cpu.csv"
SCRATCH = Path("runs/studies")
RATES = (0.03, 0.06, 0.12)
TUNING_SEED = 100  # not among those that are compared
PARITY = [
    "exact",
    "sparse",
    "sparse from 10 %",
    "sparse, never dense",
    "frozen mask",
    "SET 0.02 every 100",
    "RigL 0.02 every 100",
    "exact, linear anneal",
]
NORM = ["exact", "sparse", "true norm", "sketch", "sketch every 10", "sketch, averaged", "norm of the active"]
RIVALS = [name for name in METHODS if name.startswith(("SET", "RigL"))]
FIELDS = ["study", "setting", "method", "seed", "lr", "anneal_end", "held_out", "train", "seconds", "steps_taken"]
ABOUT = {"device": f"{platform.processor() or platform.machine()} CPU, 1 thread", "torch": torch.__version__}

Job = tuple[str, str, str, int, float, float]  # study, setting, method, seed, lr, anneal_end


def done() -> set[Job]:
    if not RESULTS.exists():
        return set()
    with open(RESULTS, newline="") as file:
        return {
            (r["study"], r["setting"], r["method"], int(r["seed"]), float(r["lr"]), float(r["anneal_end"]))
            for r in csv.DictReader(file)
        }


def jobs_of(study: str, settings: list[str], seeds: list[int], anneal_end: float | None) -> list[list[Job]]:
    """Families of jobs: those of one setting and seed, which share checkpoints of the first."""
    families = []
    for name in settings:
        config = SETTINGS[name]
        end = anneal_end or config.anneal_end
        if study == "tune":
            families += [[(study, name, "exact", TUNING_SEED, lr, end)] for lr in RATES]
        elif study == "tune rivals":
            families += [[(study, name, m, TUNING_SEED, config.lr, end) for m in ["exact", *RIVALS]]]
        else:
            methods = PARITY if study == "parity" else NORM
            families += [[(study, name, m, seed, config.lr, end) for m in methods] for seed in seeds]
    return families


def run_family(family: list[Job], finished: set[Job], rows: "mp.Queue[dict[str, object] | None]") -> None:
    one_thread()
    keep_freed_memory()
    for job in family:
        _, setting, method, seed, lr, end = job
        config = replace(SETTINGS[setting], seed=seed, lr=lr, anneal_end=end)
        place = f"{setting}-{seed}-{lr}-{end}".replace(" ", "").replace("%", "")
        trunk, scratch = SCRATCH / "trunks" / place, SCRATCH / f"{place}-{os.getpid()}"
        branches = [m for m in (METHODS[other[2]] for other in family if other not in finished) if m.branches_at]
        missing = any(not (trunk / f"{m.branches_at}.safetensors").exists() for m in branches)
        if job in finished and not (method == "exact" and missing):
            continue
        outcome = run(config, METHODS[method], scratch, trunk)
        if job not in finished:
            rows.put(dict(zip(FIELDS, job, strict=False)) | asdict(outcome))


def work(todo: "mp.Queue[list[Job] | None]", finished: set[Job], rows: "mp.Queue[dict[str, object] | None]") -> None:
    for family in iter(todo.get, None):
        run_family(family, finished, rows)
    rows.put(None)


def append(row: dict[str, object]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    is_new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, *ABOUT, "command"])
        if is_new:
            writer.writeheader()
        writer.writerow({**row, **ABOUT, "command": " ".join(["python", *sys.argv])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["tune", "tune rivals", "parity", "norm"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--anneal-end", type=float)
    options = parser.parse_args()
    finished = done()
    context = mp.get_context("spawn")
    todo, rows = context.Queue(), context.Queue()
    for family in jobs_of(options.study, options.settings, options.seeds, options.anneal_end):
        if set(family) - finished:
            todo.put(family)
    workers = [context.Process(target=work, args=(todo, finished, rows)) for _ in range(options.workers)]
    for worker in workers:
        todo.put(None)
        worker.start()
    for _ in workers:
        for row in iter(rows.get, None):
            append(row)
            print(*(f"{name}={row[name]}" for name in FIELDS), flush=True)


if __name__ == "__main__":
    main()
