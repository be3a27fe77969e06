"""``make gpu``: build, test and measure on a machine with a GPU, offline, in steps that can be resumed.

    python benchmarks/gpu.py [--only STEP ...] [--budget SECONDS] [--list] [--dry-run]

Needs Linux, g++ 12 or later, nvcc, and a Python with torch 2.11 or later built for CUDA, numpy, pytest, hypothesis,
setuptools, cmake and ninja; what else a step needs and does not find, it says. Every step is a process of its own with
a time limit. A step that passed is not run again while no source has changed, and of a benchmark only the cases that
have no row yet; so after a stop, the same command goes on. The whole takes less than 25 minutes.

Writes benchmarks/results/<gpu>.csv, <gpu>.md and <gpu>.png, and below <gpu>/ how each step ended and what it printed.
``--device cpu --tiny`` runs the benchmarks' code on small float32 cases, to test it without a GPU.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
STOPPED = 75  # exit status of a benchmark that ran out of time between two cases
BUDGET = 24 * 60
LAST_SECONDS = 30  # a benchmark begins no case this close to the end of its time
GROUPS = ("goals", "training", "sweep")
PYTEST = (PYTHON, "-m", "pytest", "-q")
SANITIZE = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
CHECK_BUILD = "import sparsekern; assert sparsekern.gpu_backend() == 'cuda', 'no CUDA kernels'"
SMOKE_RUN = "build/gpu-smoke"


@dataclass(frozen=True)
class Step:
    """One step: commands that end with 0 one after the other, within a time.

    Attributes:
        needs: programs and Python modules without which it cannot run.
        every_time: also when it has passed before, because it is quick when nothing has changed.
    """

    name: str
    what: str
    minutes: float
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    every_time: bool = False


STEPS = (
    Step(
        "build",
        "compile all kernels, in place",
        8,
        ((PYTHON, "setup.py", "-q", "build_ext", "--inplace"), (PYTHON, "-c", CHECK_BUILD)),
        every_time=True,
    ),
    Step(
        "tests",
        "every op on the device, training steps without a wait, CUDA graphs",
        6,
        ((*PYTEST, "tests/test_ops.py", "tests/test_adamw_project.py", "-k", "cuda"), (*PYTEST, "tests/gpu")),
        needs=("pytest", "hypothesis"),
    ),
    Step("goals", "time what the goals are about", 4, ()),
    Step("training", "time whole training steps", 5, ()),
    Step(
        "smoke",
        "train on the device, stop, go on; the command line in bf16",
        4,
        (
            (*PYTEST, "tests/test_device.py", "-k", "cuda"),
            (PYTHON, "-c", f"import shutil; shutil.rmtree({SMOKE_RUN!r}, ignore_errors=True)"),
            (
                *(PYTHON, "-m", "sparsekern", "train", "--preset", "smoke", "--run", SMOKE_RUN),
                *("--device", "cuda", "--dtype", "bf16"),
            ),
        ),
        needs=("pytest", "typer", "rich", "tokenizers", "safetensors", "matplotlib"),
    ),
    Step(
        "memcheck",
        "compute-sanitizer: no kernel touches memory that is not its own",
        4,
        ((*SANITIZE, "memcheck", PYTHON, "tests/gpu/kernels.py"),),
        needs=("compute-sanitizer",),
    ),
    Step(
        "racecheck",
        "compute-sanitizer: no race in shared memory",
        4,
        ((*SANITIZE, "racecheck", PYTHON, "tests/gpu/kernels.py"),),
        needs=("compute-sanitizer",),
    ),
    Step("sweep", "time all shapes, densities and numbers of tokens", 8, ()),
    Step("report", "write the tables and the picture", 1, (), every_time=True),
)


@dataclass(frozen=True)
class Run:
    """Where this run happens and what of it is known."""

    device: torch.device
    tiny: bool
    results: Path

    @property
    def name(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return re.sub(r"\W+", "_", name.lower()) + ("_tiny" if self.tiny else "")

    @property
    def title(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, torch {torch.__version__}, CUDA {cuda_versions() or 'none'}"

    @property
    def table(self) -> Path:
        return self.results / f"{self.name}.csv"

    @property
    def folder(self) -> Path:
        """What is kept of the steps."""
        return self.results / self.name

    def steps(self) -> list[Step]:
        return [s for s in STEPS if self.device.type == "cuda" or s.name in (*GROUPS, "report")]

    def ended(self) -> dict[str, str]:
        """How each step ended, of those run on the sources as they are."""
        path = self.folder / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        return state["steps"] if state.get("source") == source_digest() else {}

    def note(self, step: str, how: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"source": source_digest(), "steps": {**self.ended(), step: how}}
        (self.folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")

    def commands(self, step: Step, until: float) -> Iterator[list[str]]:
        """The step's commands; a benchmark and the report are this script again."""
        if not step.commands:
            again = [PYTHON, __file__, "--step", step.name, "--until", str(until)]
            yield [*again, "--device", str(self.device), "--results", str(self.results), *["--tiny"] * self.tiny]
        yield from map(list, step.commands)


@cache
def source_digest() -> str:
    """Of everything that decides how fast and how right the kernels are."""
    digest = hashlib.blake2b(digest_size=4)
    files = [ROOT / "CMakeLists.txt", ROOT / "setup.py", *(ROOT / "csrc").rglob("*"), *(ROOT / "sparsekern").rglob("*")]
    for path in sorted(p for p in files if p.suffix in {".txt", ".py", ".h", ".cpp", ".cu"}):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


# ---- steps


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def environment() -> dict[str, str]:
    """Of a step's commands: CUDA's programs on the PATH, the sources on Python's, a build that must find CUDA."""
    nvcc = find_nvcc()
    paths = [os.environ.get("PATH", os.defpath), *([os.path.dirname(nvcc)] if nvcc else [])]
    return {
        **os.environ,
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CMAKE_ARGS": "-DSPARSEKERN_CUDA=ON",
        **({"CUDACXX": nvcc} if nvcc else {}),
    }


def missing(step: Step) -> list[str]:
    path = environment()["PATH"]
    return [n for n in step.needs if not shutil.which(n, path=path) and not importlib.util.find_spec(n)]


def run_step(run: Run, step: Step, seconds: float) -> str:
    """Run a step; says how it ended: passed, failed, timed out, stopped by the budget, or what is missing."""
    if missing(step):
        return f"not run: {', '.join(missing(step))} not found"
    run.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with open(run.folder / f"{step.name}.log", "w") as log:
        for command in run.commands(step, time.time() + seconds - LAST_SECONDS):
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            left = seconds - (time.monotonic() - started)
            status = call(command, log.fileno(), left)
            took = f"{time.monotonic() - started:.0f} s"
            if status == STOPPED or (status is None and seconds < 60 * step.minutes):
                return f"stopped after {took}"
            if status is None:
                return f"timed out after {took}"
            if status:
                return f"failed after {took}"
    return f"passed in {took}"


def call(command: list[str], output: int, seconds: float) -> int | None:
    """The exit status of a command, or None if it took too long and was killed, with all it had started."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=output, stderr=output, start_new_session=True
    )
    try:
        return process.wait(max(0.0, seconds))
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise


def run_steps(run: Run, only: list[str], budget: float) -> int:
    """Run what is to be run, as long as there is time; returns 1 if anything failed."""
    started = time.monotonic()
    for step in run.steps():
        wanted = (
            step.name in only if only else step.every_time or not run.ended().get(step.name, "").startswith("passed")
        )
        left = budget - (time.monotonic() - started)
        if not wanted or (left < LAST_SECONDS and step.name != "report"):
            continue
        print(f"{step.name}: {step.what} ...", flush=True)
        how = run_step(run, step, 60 * step.minutes if step.name == "report" else min(60 * step.minutes, left))
        run.note(step.name, how)
        print(f"{step.name}: {how}", flush=True)
        if how.startswith(("failed", "timed out")):
            text = (run.folder / f"{step.name}.log").read_text(errors="replace")
            print("\n".join(f"    {line}" for line in text.splitlines()[-20:]), flush=True)
    print(f"\n{'step':10} result, in {run.folder}")
    for name, how in summary(run).items():
        print(f"{name:10} {how}")
    return int(any(how.startswith(("failed", "timed out")) for how in run.ended().values()))


def summary(run: Run) -> dict[str, str]:
    ended = run.ended()
    return {step.name: ended.get(step.name, "not run") for step in run.steps()}


# ---- the steps that this script is itself


def measure_group(run: Run, group: str, until: float) -> int:
    """Append rows for the cases of a group that have none; returns an exit status."""
    from sparsekern.bench.cases import cases_of
    from sparsekern.bench.measure import DENSE
    from sparsekern.bench.record import finished, measure_and_record

    done, status, fitted = finished(run.table, {"source": source_digest()}), 0, set()
    about = {"cuda": cuda_versions(), "source": source_digest()}
    command = f"python benchmarks/gpu.py --only {group}"
    for case in cases_of(group, tiny=run.tiny):
        if case.op in fitted:
            continue
        if case not in done:
            if time.time() > until:
                return STOPPED
            try:
                measured = measure_and_record(case, run.device, run.table, command, about=about)
            except torch.OutOfMemoryError as error:
                print(case, str(error).splitlines()[0], flush=True)
                continue
            for clock, timings in measured.timings.items():
                print(case, clock, {name: f"{t.median_ms:.3f} ms" for name, t in timings.items()}, flush=True)
            for name, why in measured.failed.items():
                print(case, name, "not timed:", why, flush=True)
            status |= bool(measured.wrong)
            done[case] = measured.timed
        if group == "training" and any(name.startswith(DENSE) for name in done[case]):
            fitted.add(case.op)  # smaller ones would say no more
    return status


def cuda_versions() -> str:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if torch.version.cuda is None or not shutil.which(query[0]):
        return torch.version.cuda or ""
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return f"{torch.version.cuda}, driver {driver[0] if driver else 'unknown'}"


def write_report(run: Run) -> int:
    from sparsekern.bench.plots import plot
    from sparsekern.bench.report import markdown, one_clock, read_results

    results = read_results(run.table) if run.table.exists() else []
    steps = {name: how for name, how in summary(run).items() if name != "report"}
    run.results.mkdir(parents=True, exist_ok=True)
    (run.results / f"{run.name}.md").write_text(markdown(one_clock(results), run.title, steps))
    plot(results, run.results / f"{run.name}.png")
    return 0


# ---- the command line


def show_plan(run: Run, with_cases: bool) -> None:
    from sparsekern.bench.cases import cases_of

    for step in run.steps():
        print(f"{step.name:10} {summary(run)[step.name]}: {step.what}, at most {step.minutes:g} min")
        if with_cases:
            for command in run.commands(step, 0):
                print("    $", " ".join(command))
            for case in cases_of(step.name, tiny=run.tiny) if step.name in GROUPS else ():
                print("   ", case)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=[s.name for s in STEPS], help="these, even if passed")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which nothing new begins")
    parser.add_argument("--list", action="store_true", help="print the steps and how they ended, run nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the steps, their commands and cases, run nothing")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--tiny", action="store_true", help="one small case per op")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device", file=sys.stderr)
        return 2
    if asked.device.type == "cuda" and not find_nvcc():
        print("benchmarks/gpu.py: nvcc not found: put it on the PATH, or set CUDACXX", file=sys.stderr)
        return 2
    run = Run(asked.device, asked.tiny, asked.results.absolute())
    if asked.list or asked.dry_run:
        show_plan(run, with_cases=asked.dry_run)
        return 0
    if asked.step:
        return write_report(run) if asked.step == "report" else measure_group(run, asked.step, asked.until)
    return run_steps(run, asked.only, asked.budget)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
