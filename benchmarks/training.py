"""Studies of training on a CPU; every row is appended to results/ when it is done, and a re-run skips what is there.

    python benchmarks/training.py STUDY [--workers 2] [--seeds 0 1 2] [--settings "256 wide, 2 %" ...] [--methods ...]

Whole runs (results/training_cpu.csv), side by side, one thread each:
    tune         the learning rate of exact mode
    tune rivals  how often and how much the rivals replace
    anneal       where the anneal ends
    shapes       how the density falls
    cheap        ways to spend less before the anneal ends
    variants     constants of sparse mode
    norm         ways to know the gradient's norm
    parity       exact mode against sparse mode at each switch point and against other rules
    blocks       exact mode at one number of nonzeros, one by one or in blocks of 4, 16 and 32
    cost         small dense models, to see which one is the cheapest that is as good as a sparse one
Steps (results/training_steps_cpu.csv), one after the other; nothing else should run:
    speed        a step of sparse mode, exact mode and masked dense PyTorch, by parts
    memory       bytes of their parameters, index arrays, gradients and optimizer state
    price        a step of the dense models of `cost`, and of the sparse one
    scale        sparse mode up to 1e11 dense-equivalent weights: time and memory against the nonzeros
tables           what is in the results, as markdown; and the picture of `scale`

Runs of one setting and seed share data, initial weights and, where a method takes over from exact mode, its checkpoint.
"""

import argparse
import csv
import itertools
import multiprocessing as mp
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparsekern import keep_freed_memory
from sparsekern.bench import scale, steps, tables
from sparsekern.bench.record import append_rows, device_name
from sparsekern.bench.studies import BLOCKS, DENSE, METHODS, SETTINGS, SHIPPED, run
from sparsekern.data import load_corpus
from sparsekern.recipe import PRESETS

RESULTS = Path(__file__).parent / "results"
RUNS, STEPS, PICTURE = (RESULTS / f"training_{name}" for name in ("cpu.csv", "steps_cpu.csv", "scale.png"))
SCRATCH = Path("runs/studies")
console = Console(soft_wrap=True, highlight=False)

# ---- whole runs

RATES = (0.015, 0.03, 0.06, 0.12)
DENSE_RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
BLOCK_METHODS = ["exact", *(name for name in METHODS if "blocks" in name)]
ANNEAL_ENDS = (0.1, 0.2, 0.3, 0.5)
TUNING_SEED = 100  # not among those that are compared
RIVALS = [name for name in METHODS if name.startswith(("SET", "RigL"))]
SHAPES = ["exact", "exact, geometric anneal", "exact, linear anneal", "exact, published anneal"]
CHEAP = [
    "exact",
    "sparse",
    "sparse from 10 %",
    "sparse from 10 %, 4 candidates, refresh 20",
    "sparse, gradients off the support every 4",
    "sparse, never dense",
    "sparse, never dense, rate 0.03",
    "sparse, never dense, rate 0.12",
]
VARIANTS = [
    "exact",
    "sparse",
    "sparse, 2 candidates",
    "sparse, 4 candidates",
    "sparse, refresh 20",
    "sparse, refresh 20, beta1 0.9",
    SHIPPED,
]
NORM = ["exact", "sparse", "true norm", "sketch", "sketch every 10", "sketch, averaged", "norm of the active"]
PARITY = [
    "exact",
    "sparse",
    "sparse from 10 %",
    "sparse, never dense",
    "frozen mask",
    "SET 0.1 every 25",  # the best of `tune rivals`
    "RigL 0.1 every 25",
    "exact, published anneal",
    "sparse, bf16",
    "sparse, refresh 20",
    SHIPPED,
    "sparse from 10 %, 4 candidates, refresh 20",
    "sparse, never dense, 4 candidates, refresh 20",
]
METHODS_OF = {"parity": PARITY, "norm": NORM, "variants": VARIANTS, "cheap": CHEAP, "shapes": SHAPES}
WHOLE_RUNS = ("tune", "tune rivals", "anneal", "shapes", "cheap", "variants", "norm", "parity", "blocks", "cost")
JOB = ("study", "setting", "method", "seed", "lr", "anneal_end")
FIELDS = (*JOB, "held_out", "train", "seconds", "steps_taken", "device", "torch", "command")

Job = tuple[str, str, str, int, float, float]


def done() -> set[Job]:
    if not RUNS.exists():
        return set()
    with open(RUNS, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (r["study"], r["setting"], r["method"], int(r["seed"]), float(r["lr"]), float(r["anneal_end"])) for r in rows
    }


def families_of(study: str, settings: list[str], seeds: list[int], only: list[str]) -> list[list[Job]]:
    """Jobs of one setting and seed each, which share checkpoints of the first; ``only`` some methods, or all."""
    families: list[list[Job]] = []
    if study == "cost":
        for (name, config), rate in itertools.product(DENSE.items(), DENSE_RATES):
            families.append([(study, name, "exact", seeds[0], rate, config.anneal_end)])
        return families
    if study == "blocks":
        for (name, config), seed in itertools.product(BLOCKS.items(), seeds):
            families += [[(study, name, m, seed, config.lr, config.anneal_end)] for m in BLOCK_METHODS]
        return families
    for name in settings:
        lr, end = SETTINGS[name].lr, SETTINGS[name].anneal_end
        if study == "tune":
            families += [[(study, name, "exact", TUNING_SEED, rate, end)] for rate in RATES]
        elif study == "tune rivals":
            families += [[(study, name, m, TUNING_SEED, lr, end) for m in ["exact", *RIVALS]]]
        elif study == "anneal":
            for seed, until in itertools.product(seeds, ANNEAL_ENDS):
                families.append([(study, name, m, seed, lr, until) for m in ("exact", "sparse")])
        else:
            methods = [m for m in METHODS_OF[study] if m == "exact" or not only or m in only]
            families += [[(study, name, m, seed, lr, end) for m in methods] for seed in seeds]
    return families


def run_family(family: list[Job], finished: set[Job], rows: "mp.Queue[dict[str, Any] | None]") -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    missing = [job for job in family if job not in finished]
    for job in family:
        _, setting, method, seed, lr, end = job
        config = replace((SETTINGS | DENSE | BLOCKS)[setting], seed=seed, lr=lr, anneal_end=end)
        place = f"{setting}-{seed}-{lr}-{end}".replace(" ", "").replace("%", "")
        trunk, scratch = SCRATCH / "trunks" / place, SCRATCH / f"{place}-{os.getpid()}"
        points = {METHODS[other[2]].branches_at for other in missing} - {None}
        is_needed = method == "exact" and any(not (trunk / f"{point}.safetensors").exists() for point in points)
        if job in missing or is_needed:
            outcome = run(config, METHODS[method], scratch, trunk)
            if job in missing:
                rows.put(dict(zip(JOB, job, strict=True)) | asdict(outcome))


def work(todo: "mp.Queue[list[Job] | None]", finished: set[Job], rows: "mp.Queue[dict[str, Any] | None]") -> None:
    for family in iter(todo.get, None):
        try:
            run_family(family, finished, rows)
        except Exception:  # the other families can still be run
            traceback.print_exc()
    rows.put(None)


def append(path: Path, fields: tuple[str, ...], row: Mapping[str, Any]) -> None:
    about = {"device": device_name(), "torch": torch.__version__, "command": " ".join(["python", *sys.argv])}
    append_rows(path, [{**row, **about}], fields)
    console.print(*(f"{name}={value}" for name, value in row.items()))


def study_runs(study: str, settings: list[str], seeds: list[int], only: list[str], workers: int) -> None:
    finished, context = done(), mp.get_context("spawn")
    todo, rows = context.Queue(), context.Queue()
    for family in families_of(study, settings, seeds, only):
        if set(family) - finished:
            todo.put(family)
    processes = [context.Process(target=work, args=(todo, finished, rows), daemon=True) for _ in range(workers)]
    for process in processes:
        todo.put(None)
        process.start()
    for _ in processes:
        for row in iter(rows.get, None):
            append(RUNS, FIELDS, row)


# ---- steps

SIZES = tuple(steps.Size(width, 8 / width) for width in (512, 1024, 2048))  # eight nonzeros per row
ROUNDS = 3
CONTENDERS = ["sparse", "exact", "masked dense f32"]
OF_SPARSE = ["sparse bf16", "sparse, 1 candidate", "sparse, 1 candidate, bf16"]
BF16 = "masked dense bf16"  # minutes per step at the largest size on a CPU that computes it in software
ALONG = [1.0, 0.5, 0.25, 0.1, 0.04, 0.01]  # densities of exact mode before the last
PRICED = "512 wide, 0.5 %"
SCALES = (  # the one that dense matrices could not hold, then at one width, then ever wider
    scale.Scale(32768, 8, 4.85e-4),
    *(scale.Scale(4096, 2, density) for density in (0.002, 0.004, 0.008, 0.016)),
    *(scale.Scale(width, 2, 8 / width) for width in (2048, 8192, 16384)),
)
STEP_FIELDS = ("study", "d_model", "n_layer", "density", "tokens", "what", "linears", "attention", "abs_topk", "rest")
STEP_FIELDS += ("update", "total", "bytes", "nnz", "dense_weights", "losses", "device", "torch", "command")


def measured() -> set[tuple[str, int, str]]:
    if not STEPS.exists():
        return set()
    with open(STEPS, newline="") as file:
        return {(r["study"], int(r["d_model"]), r["what"]) for r in csv.DictReader(file)}


def row_of(study: str, size: steps.Size, what: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: getattr(size, name) for name in ("d_model", "n_layer", "density", "tokens")}
    return {"study": study, **about, "what": what, **numbers}


def study_speed() -> None:
    keep_freed_memory()
    for size in SIZES:
        if ("speed", size.d_model, "sparse") not in measured():
            names = [*OF_SPARSE, *CONTENDERS, *([BF16] if size != SIZES[-1] else [])]
            for name, numbers in steps.compare(size, names, ROUNDS).items():
                append(STEPS, STEP_FIELDS, row_of("speed", size, name, numbers))
            append(STEPS, STEP_FIELDS, row_of("speed", size, "refresh", {"total": steps.refresh_seconds(size)}))
    time_exact_along("speed", SIZES[-1], [*ALONG, SIZES[-1].density])


def time_exact_along(study: str, size: steps.Size, densities: list[float]) -> None:
    for density, seconds in steps.exact_along(size, densities):
        what = f"exact at {density:.4g}"
        if (study, size.d_model, what) not in measured():
            append(STEPS, STEP_FIELDS, row_of(study, replace(size, density=density), what, {"total": seconds}))


def study_memory() -> None:
    for size in SIZES:
        if ("memory", size.d_model, "sparse") not in measured():
            few = replace(size, tokens=size.context)  # what is held does not depend on them
            for name, held in steps.memory(few, [OF_SPARSE[1], *CONTENDERS]).items():
                append(STEPS, STEP_FIELDS, row_of("memory", few, name, {"bytes": held}))


def study_price() -> None:
    """Of the models of `cost`, at their batch."""
    keep_freed_memory()
    for name, config in {PRICED: SETTINGS[PRICED], **DENSE}.items():
        size = steps.Size(
            config.d_model,
            config.density,
            n_layer=config.n_layer,
            vocab=config.vocab_size,
            context=config.context,
            tokens=config.batch * config.context,
            afrac=config.afrac,
        )
        names = ["dense"] if name in DENSE else CONTENDERS
        if ("price", size.d_model, names[0]) not in measured():
            for what, numbers in steps.compare(size, names, 5 * ROUNDS).items():
                append(STEPS, STEP_FIELDS, row_of("price", size, what, numbers))
            if name not in DENSE:
                append(STEPS, STEP_FIELDS, row_of("price", size, "refresh", {"total": steps.refresh_seconds(size)}))
                time_exact_along("price", size, [*ALONG, config.density])


def in_a_process_of_its_own(case: scale.Scale, results: "mp.Queue[scale.ScaleOutcome]") -> None:
    keep_freed_memory()
    tokens = load_corpus(None, vocab_size=case.vocab).train
    lr = 0.04 / (case.density * case.d_model)  # no warm-up: the more inputs a neuron has, the smaller each one's step
    results.put(scale.run(case, tokens, steps=10, lr=lr, refresh_every=4))


def study_scale() -> None:
    context = mp.get_context("spawn")
    for case in SCALES:
        what = f"sparse at {case.density:.3g}"
        if ("scale", case.d_model, what) in measured():
            continue
        results = context.Queue()
        process = context.Process(target=in_a_process_of_its_own, args=(case, results))
        process.start()
        while process.is_alive() and results.empty():
            process.join(1)
        if results.empty():
            console.print(f"{case}: the process ended with {process.exitcode} (out of memory?)")
            continue
        outcome = results.get()
        process.join()
        row = {"study": "scale", "d_model": case.d_model, "n_layer": case.n_layer, "density": case.density}
        numbers = {"tokens": case.tokens, "total": outcome.step_seconds, "bytes": outcome.peak_bytes}
        counts = {"nnz": outcome.nnz, "dense_weights": outcome.dense_weights}
        losses = " ".join(f"{loss:.4g}" for loss in outcome.losses)
        append(STEPS, STEP_FIELDS, {**row, **numbers, **counts, "what": what, "losses": losses})


def print_tables() -> None:
    runs, timed = tables.read(RUNS), tables.read(STEPS)
    for study in WHOLE_RUNS:
        print(f"\n{study}\n\n{tables.against_exact(runs, study)}")
    print(f"\nspeed\n\n{tables.speed(timed)}")
    config = replace(PRESETS["laptop"], d_model=SIZES[-1].d_model, density=SIZES[-1].density)
    seconds = tables.whole_run(timed, config, "speed")
    ratio = seconds["masked dense"] / seconds["sparse"]
    print(f"whole run, sparse mode: {seconds['sparse']:.2f} s per step, masked dense takes {ratio:.1f} times as long")
    tables.plot_scale(timed, PICTURE)
    shipped = replace(SETTINGS[PRICED], **METHODS[SHIPPED].changes)
    print(f"\nprice of sparsity\n\n{tables.price(runs, timed, PRICED, SHIPPED, shipped)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*WHOLE_RUNS, "speed", "memory", "price", "scale", "tables"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--methods", nargs="+", default=[], choices=list(METHODS), metavar="METHOD")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the workers, being daemons, end too
    if options.study == "speed":
        study_speed()
    elif options.study == "memory":
        study_memory()
    elif options.study == "price":
        study_price()
    elif options.study == "scale":
        study_scale()
    elif options.study == "tables":
        print_tables()
    else:
        study_runs(options.study, options.settings, options.seeds, options.methods, options.workers)


if __name__ == "__main__":
    main()
