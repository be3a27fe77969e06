"""Timing that can be believed on a shared machine: contenders take turns in one process, medians are compared."""

import csv
import datetime
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .._native import cpu_isa

Clock = Callable[[Callable[[], object]], float]  # runs something and gives its milliseconds
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: the median and the 20th and 80th percentile of its rounds."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def wall_ms(run: Callable[[], object]) -> float:
    """The time of a second run, which finds the caches as the first left them, and not as another contender did."""
    run()
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


class CudaClock:
    """The time on a GPU between two events around a run that finds nothing in the L2 cache.

    Reading a buffer of several times its size empties the cache (writing would leave lines to be written back). That
    is done often enough to keep the GPU busy while the host asks for the run, so that launches do not count.
    """

    READS = 8  # half a millisecond on an H100

    def __init__(self, device: torch.device) -> None:
        size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self.elsewhere = torch.zeros(size // 4, device=device)
        self.started, self.ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, run: Callable[[], object]) -> float:
        for _ in range(self.READS):
            self.elsewhere.sum()
        self.started.record()
        run()
        self.ended.record()
        self.ended.synchronize()
        return self.started.elapsed_time(self.ended)


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Clock = wall_ms,
    prepare: Callable[[], object] | None = None,
    seconds: float = float("inf"),
) -> dict[str, Timing]:
    """Time each contender once per round, after ``prepare``; after ``seconds`` only the first three rounds begin."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name, contender in contenders.items():
            if prepare is not None:
                prepare()
            times[name].append(clock(contender))
    percentiles = {name: np.percentile(ms, (50, 20, 80)) for name, ms in times.items()}
    return {name: Timing(*map(float, ms)) for name, ms in percentiles.items()}


def device_name(device: torch.device | None = None) -> str:
    """The model of the GPU, or by default of the CPU, as the operating system gives it."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.machine()


def append_rows(
    path: Path,
    case: Mapping[str, object],
    timings: Mapping[str, Timing],
    command: str,
    *,
    device: torch.device | None = None,
    against: Mapping[str, str] | None = None,
) -> None:
    """Append a CSV row per contender: when, where and by which command, the case, the times.

    Args:
        path: the file; made with its header if it does not exist.
        case: further columns, the same for every row.
        timings: of the contenders.
        command: that measures this again.
        device: a GPU, or by default the CPU.
        against: further columns that say how many times as fast as another contender a row is: column -> contender.
            Empty where that has no time.
    """
    on_gpu = device is not None and device.type == "cuda"
    setting = {
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "isa": "sm_{}{}".format(*torch.cuda.get_device_capability(device)) if on_gpu else cpu_isa(),
        "torch": torch.__version__,
        "command": command,
        **case,
    }
    rows = []
    for name, t in timings.items():
        others = {column: timings.get(other) for column, other in (against or {}).items()}
        ratios = {column: other.median_ms / t.median_ms if other else "" for column, other in others.items()}
        rows.append({**setting, "contender": name, **asdict(t), **ratios})
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
