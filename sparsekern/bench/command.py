"""What ``sparsekern bench`` does: the cases that have no rows yet, a table for each as it is measured, the picture."""

from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .cases import GROUPS
from .measure import Case
from .plots import plot
from .record import Row, finished, measure_and_record, rows_of, setting
from .report import break_evens, matching, one_clock, ours, read_results

SUITES = {"cpu": ("cpu",), "cuda": ("goals", "sweep")}
QUICK_SUITES = {"cpu": ("quick",), "cuda": ("goals",)}
SECONDS, QUICK_SECONDS = 1.0, 0.25  # after which a clock begins no further round of a case, if it has had three


def cases_for(device: torch.device, ops: list[str], quick: bool) -> list[Case]:
    """The cases of a device whose op's name begins with one of ``ops``; all if there are none.

    Raises:
        ValueError: no case has such an op.
    """
    groups = (QUICK_SUITES if quick else SUITES)[device.type]
    cases = [case for group in groups for case in GROUPS[group]()]
    known = dict.fromkeys(case.op for case in cases)
    for op in ops:
        if not any(name.startswith(op) for name in known):
            raise ValueError(f"--op must begin one of {', '.join(known)}; got {op!r}")
    return [case for case in cases if not ops or case.op.startswith(tuple(ops))]


def run_cases(cases: list[Case], device: torch.device, out: Path, command: str, console: Console, quick: bool) -> bool:
    """Measure what ``out`` has no rows of from this device and setting; returns whether all of ours were right."""
    done, right = finished(out, setting(device)), True
    for number, case in enumerate(cases, 1):
        if case in done:
            console.print(f"{case}: measured before", markup=False, highlight=False)
            continue
        measured = measure_and_record(case, device, out, command, seconds=QUICK_SECONDS if quick else SECONDS)
        console.print(table(f"{number} of {len(cases)}: {case}", rows_of(case, measured)))
        for name, why in measured.failed.items():
            console.print(f"not timed: {name}: {why}", style="red", markup=False, highlight=False)
        right &= not measured.wrong
    return right


def summarise(out: Path, console: Console) -> None:
    """Print where dense is as fast, and draw the picture beside the file."""
    results = read_results(out)
    for line in break_evens(matching(one_clock(ours(results)), {"op": "csr_linear"})):
        console.print(line, markup=False, highlight=False)
    picture = out.with_suffix(".png")
    drawn = f" and {picture}" if plot(results, picture) else ""
    console.print(f"Rows are in {out}{drawn}", markup=False, soft_wrap=True)


def table(title: str, rows: list[Row]) -> Table:
    """A line per contender: milliseconds on every clock, and the ratios on the first one."""
    clocks = list(dict.fromkeys(str(row["clock"]) for row in rows))
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("milliseconds", min_width=14)
    for column in (*clocks, "20-80 %", "x dense", "x torch", "of limit"):
        drawn.add_column(column, justify="right")
    by_contender: dict[str, list[Row]] = {}
    for row in rows:
        by_contender.setdefault(str(row["contender"]), []).append(row)
    for name, of_clocks in by_contender.items():
        first = of_clocks[0]
        spread = f"{shown(first['p20_ms'])}-{shown(first['p80_ms'])}"
        ratios = [shown(first.get(column)) for column in ("vs_dense", "vs_torch")]
        limit = f"{first['vs_limit']:.0%}" if "vs_limit" in first else ""
        drawn.add_row(name, *(shown(row["median_ms"]) for row in of_clocks), spread, *ratios, limit)
    return drawn


def shown(value: object) -> str:
    """Three digits of a number, all of one that has more before the point; nothing where there is none."""
    if not isinstance(value, float):
        return ""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
