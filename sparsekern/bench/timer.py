"""Timing that can be believed on a shared machine: contenders take turns in one process, medians are compared."""

import csv
import datetime
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .._native import cpu_isa


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: the median and the 20th and 80th percentile of its rounds."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def take_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time each contender once per round.

    In its turn a contender runs twice and the second run is timed, so that each finds the caches as it left them
    itself, and not as the one before it did.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender()
            started = time.perf_counter()
            contender()
            times[name].append(1e3 * (time.perf_counter() - started))
    percentiles = {name: np.percentile(ms, (50, 20, 80)) for name, ms in times.items()}
    return {name: Timing(*map(float, ms)) for name, ms in percentiles.items()}


def device_name() -> str:
    """The CPU's model, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.machine()


def append_rows(path: Path, case: dict[str, object], timings: dict[str, Timing], command: str) -> None:
    """Append a CSV row per contender: when, where and by which command, the case, the times."""
    setting = {
        "date": datetime.date.today().isoformat(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "isa": cpu_isa(),
        "torch": torch.__version__,
        "command": command,
        **case,
    }
    rows = [{**setting, "contender": name, **asdict(timing)} for name, timing in timings.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
