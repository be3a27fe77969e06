"""Rows of measurements: one CSV schema for every device, one file per device."""

import csv
import datetime
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .._native import cpu_isa
from .cases import BUILDERS
from .measure import COPY, DENSE, FMA, Case, Measured, Work, limit_ms, measure
from .timer import Timing

WHERE = ("date", "device", "threads", "isa", "torch", "cuda", "source", "command")
WHAT = ("op", "dtype", "tokens", "n", "k", "density", "clock", "contender")
TIMES = ("median_ms", "p20_ms", "p80_ms", "bytes", "flops")
RATIOS = ("vs_dense", "vs_torch", "vs_copy", "vs_limit")
COLUMNS = (*WHERE, *WHAT, *TIMES, *RATIOS)

Row = dict[str, object]


def device_name(device: torch.device | None = None) -> str:
    """The model of the GPU, or by default of the CPU, as the operating system gives it."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.machine()


def file_name(device: torch.device) -> str:
    """Of the CSV file of a device: its name in lower case, without what is neither a letter nor a digit."""
    return re.sub(r"\W+", "_", device_name(device).lower()).strip("_") + ".csv"


def setting(device: torch.device) -> dict[str, str]:
    """The columns that say on what a row was measured."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return {
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "isa": "sm_{}{}".format(*capability) if capability else cpu_isa(),
        "torch": torch.__version__,
    }


def measure_and_record(
    case: Case,
    device: torch.device,
    path: Path,
    command: str,
    *,
    about: Mapping[str, str] | None = None,
    seconds: float = 1.0,
) -> Measured:
    """Measure a case and append its rows, unless one of our own contenders is wrong.

    Args:
        case, device: what is measured, and where.
        path: the CSV file; made with its header if it does not exist.
        command: that measures this again.
        about: further columns of ``WHERE``.
        seconds: for each clock, as in :func:`sparsekern.bench.measure.measure`.
    """
    measured = measure(BUILDERS[case.op], case, device, seconds=seconds)
    if not measured.wrong:
        here = {"date": datetime.date.today().isoformat(), **setting(device), "command": command, **(about or {})}
        append_rows(path, [{**here, **row} for row in rows_of(case, measured)])
    return measured


def rows_of(case: Case, measured: Measured) -> list[Row]:
    """A row per clock and contender, with the ratios to others on the same clock: how many times as fast it is.

    ``vs_dense`` and ``vs_torch`` are to the fastest of them, ``vs_limit`` to the time of the limit; none where that
    has no time. ``bytes`` and ``flops`` are what a contender does: of the limits' contenders only the one or the other.
    """
    rows: list[Row] = []
    works = {COPY: Work(bytes=measured.work.bytes), FMA: measured.fma_work}
    for clock, timings in measured.timings.items():
        others = {
            "vs_dense": fastest(timings, DENSE),
            "vs_torch": fastest(timings, measured.baseline),
            "vs_copy": fastest(timings, COPY),
            "vs_limit": limit_of(measured, timings),
        }
        for name, t in timings.items():
            work = works.get(name, measured.work)
            about = {"clock": clock, "contender": name, "bytes": work.bytes, "flops": work.flops}
            ratios = {column: ms / t.median_ms for column, ms in others.items() if ms is not None and name != FMA}
            rows.append({**asdict(case), **about, **asdict(t), **ratios})
    return rows


def fastest(timings: Mapping[str, Timing], beginning: str) -> float | None:
    """Median milliseconds of the fastest contender whose name begins so."""
    return min((t.median_ms for name, t in timings.items() if name.startswith(beginning)), default=None)


def limit_of(measured: Measured, timings: Mapping[str, Timing]) -> float | None:
    """Milliseconds; None for a case of which no bytes are known."""
    if COPY not in timings:
        return None
    flops_per_ms = measured.fma_work.flops / timings[FMA].median_ms if FMA in timings else math.inf
    return limit_ms(timings[COPY].median_ms, measured.work.flops, flops_per_ms)


def append_rows(path: Path, rows: list[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Append to a CSV file, made with its header if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def case_of(row: Mapping[str, str]) -> Case:
    """The case that a row belongs to."""
    tokens, n, k = (int(row[name]) for name in ("tokens", "n", "k"))
    return Case(row["op"], row["dtype"], tokens, n, k, float(row["density"]))


def finished(path: Path, where: Mapping[str, str]) -> dict[Case, set[str]]:
    """The cases that have rows with these entries, each with the contenders that were timed."""
    done: dict[Case, set[str]] = {}
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if where.items() <= row.items():
                    done.setdefault(case_of(row), set()).add(row["contender"])
    return done
