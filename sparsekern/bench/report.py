"""The report on a CSV file of benchmarks: the density at which dense wins; for a GPU goals and tables, too."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from .cases import LINEAR, MODEL, SHAPE
from .measure import NO_WORK, OURS, Case, Work
from .record import RATIOS, case_of
from .timer import KERNEL


@dataclass(frozen=True)
class Result:
    """A row: the case, the contender and its median on a clock, and how many times as fast it is as others."""

    case: Case
    contender: str
    median_ms: float
    vs: Mapping[str, float]  # "dense", "torch", "copy", "limit"; only those that were timed
    clock: str = KERNEL
    work: Work = NO_WORK


def read_results(path: Path) -> list[Result]:
    """The last row of every case, contender and clock."""
    latest: dict[tuple[Case, str, str], Result] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            case, contender, clock = case_of(row), row["contender"], row["clock"]
            vs = {column.removeprefix("vs_"): float(row[column]) for column in RATIOS if row[column]}
            work = Work(int(row["bytes"]), int(row["flops"]))
            latest[case, contender, clock] = Result(case, contender, float(row["median_ms"]), vs, clock, work)
    return list(latest.values())


def one_clock(results: list[Result]) -> list[Result]:
    """Those of kernel time; where that was not taken (on a GPU) all, which are then of one clock."""
    return [r for r in results if r.clock == KERNEL] or results


def ours(results: Iterable[Result]) -> list[Result]:
    """Rows of our default backend: the first of ours that a case has on a clock."""
    first: dict[tuple[Case, str], Result] = {}
    for r in results:
        if r.contender.startswith(OURS):
            first.setdefault((r.case, r.clock), r)
    return list(first.values())


def break_even(results: Iterable[Result]) -> float | None:
    """The density at which we are as fast as the fastest dense contender, on the straight line between two measured
    densities in logarithmic scales; 0 or infinity where dense, or we, win at all of them; None without two."""
    points = sorted((r.case.density, r.vs["dense"]) for r in results if "dense" in r.vs)
    if len(points) < 2:
        return None
    for (d0, v0), (d1, v1) in pairwise(points):
        if v0 >= 1 > v1:
            t = math.log(v0) / (math.log(v0) - math.log(v1))
            return math.exp(math.log(d0) + t * (math.log(d1) - math.log(d0)))
    return math.inf if points[-1][1] >= 1 else 0.0


# ---- goals


@dataclass(frozen=True)
class Goal:
    text: str
    goal: float
    measured: Callable[[list[Result]], float | None]  # of our rows
    at_least: bool = True
    unit: str = "x"

    def line(self, results: list[Result]) -> str:
        value = self.measured(results)
        sign = ">=" if self.at_least else "<="
        wanted = f"{sign} {show(self.goal, self.unit)}"
        if value is None:
            return f"| {self.text} | {wanted} | not yet measured | |"
        met = value >= self.goal if self.at_least else value <= self.goal
        return f"| {self.text} | {wanted} | {show(value, self.unit)} | {'yes' if met else 'no'} |"


def show(value: float, unit: str) -> str:
    if unit == "%":
        return "none measured" if value == 0 else "all measured" if value == math.inf else f"{100 * value:.3g} %"
    return f"{value:.2f} x"


def matching(results: Iterable[Result], where: Mapping[str, object]) -> list[Result]:
    return [r for r in results if where.items() <= asdict(r.case).items()]


def ratio(to: str, where: Mapping[str, object]) -> Callable[[list[Result]], float | None]:
    """How many times as fast as another contender, at worst."""
    return lambda results: min((r.vs[to] for r in matching(results, where) if to in r.vs), default=None)


def time_over_adamw(results: list[Result]) -> float | None:
    faster = ratio("torch", {"op": "adamw_project_", "n": MODEL[0]})(results)
    return None if faster is None else 1 / faster


LINEAR_AT = {"op": "csr_linear", "dtype": "bf16", "tokens": 65536, "n": SHAPE[0], "k": SHAPE[1]}
TOPK_AT = {"op": "abs_topk", "dtype": "bf16", "tokens": 65536, "n": 8192}
GOALS = (
    Goal("`csr_linear` 2048 -> 8192, 0.4 %, against cuBLAS bf16", 4.5, ratio("dense", {**LINEAR_AT, "density": 0.004})),
    Goal("the same, of the bandwidth of a copy", 0.75, ratio("copy", {**LINEAR_AT, "density": 0.004}), unit="%"),
    Goal("density up to which it beats cuBLAS bf16", 0.02, lambda r: break_even(matching(r, LINEAR_AT)), unit="%"),
    Goal("`abs_topk`, of the bandwidth of a copy", 0.8, ratio("copy", TOPK_AT), unit="%"),
    Goal("`abs_topk` against `torch.topk` and scatter", 20, ratio("torch", TOPK_AT)),
    Goal("Adam and projection, time over fused AdamW alone", 1.7, time_over_adamw, at_least=False),
    Goal("training step against masked dense", 15, ratio("dense", {"op": "training step", "n": MODEL[0]})),
    Goal("the same in sparse mode", 15, ratio("dense", {"op": "sparse training step", "n": MODEL[0]})),
)


# ---- the report


def markdown(results: list[Result], title: str, steps: Mapping[str, str]) -> str:
    """The whole report; ``steps`` says how each step of the run ended."""
    lines = [f"# {title}", "", "| step | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in steps.items())]
    lines += ["", "| goal | wanted | measured | met |", "| --- | --- | --- | --- |"]
    lines += [goal.line(ours(results)) for goal in GOALS]
    for op in dict.fromkeys(r.case.op for r in results):
        of_op = [r for r in results if r.case.op == op]
        lines += ["", f"## {op}", "", *table(of_op), *(break_evens(of_op) if op in LINEAR else [])]
    return "\n".join(lines) + "\n"


def table(results: list[Result]) -> list[str]:
    """Milliseconds of every contender, a line per case; how many times as fast our default backend is."""
    contenders = list(dict.fromkeys(r.contender for r in results))
    cases = list(dict.fromkeys(r.case for r in results))
    by_key = {(r.case, r.contender): r for r in results}
    of_ours = {r.case: r for r in ours(results)}
    head = ["dtype", "tokens", "n x k", "density", *(f"{name}, ms" for name in contenders)]
    head += ["vs dense", "vs torch", "of a copy"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for case in cases:
        times = [by_key.get((case, name)) for name in contenders]
        vs = of_ours[case].vs if case in of_ours else {}
        cells = [case.dtype, f"{case.tokens}", f"{case.n} x {case.k}", f"{100 * case.density:.3g} %"]
        cells += [f"{r.median_ms:.3g}" if r else "" for r in times]
        cells += [f"{vs[name]:.2f}" if name in vs else "" for name in ("dense", "torch")]
        cells += [f"{100 * vs['copy']:.0f} %" if "copy" in vs else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def break_evens(results: list[Result]) -> list[str]:
    """A table of the densities at which dense is as fast, where they are known."""
    lines = []
    of_ours = ours(results)
    for dtype, tokens, n, k in dict.fromkeys((r.case.dtype, r.case.tokens, r.case.n, r.case.k) for r in of_ours):
        at = break_even(matching(of_ours, {"dtype": dtype, "tokens": tokens, "n": n, "k": k}))
        if at is not None:
            lines.append(f"| {dtype} | {tokens} | {n} x {k} | {show(at, '%')} |")
    head = [
        "Density at which dense is as fast:",
        "",
        "| dtype | tokens | n x k | density |",
        "| --- | --- | --- | --- |",
    ]
    return ["", *head, *lines] if lines else []
