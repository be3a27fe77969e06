"""Timing that can be believed on a shared machine: contenders take turns in one process, medians are compared.

On a CPU every contender is timed three times over, by clocks that differ in what the run finds:

- "kernel": its memory, also the output's, as a run just before has left it, in the caches as far as it fits;
- "cold": the same memory, but nothing of it in any cache;
- "op": as "kernel", but all free memory has been given back to the operating system before, so that every page of the
  output and of temporaries is a page fault, as in a program whose allocator does not keep them.

That "kernel" and "cold" find memory that is already mapped takes one allocator policy for all contenders,
:func:`sparsekern.keep_freed_memory`: programs that time something call it first. Even so the allocator may give a run
memory that none has had before; such runs do not count.

On a GPU, where torch keeps freed memory, there is only "cold".
"""

import ctypes
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Run = Callable[[], object]
Clock = Callable[[Run, Run], float]  # runs something, each time after running something else; gives its milliseconds
KERNEL, COLD, OP = "kernel", "cold", "op"
FEWEST_ROUNDS = 3
TRIES, FEW_FAULTS = 10, 16  # of runs that are to find their memory mapped; pages of four kilobytes, as a rule
L3_WHERE_UNKNOWN = 64 << 20


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: the median and the 20th and 80th percentile of its rounds."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def nothing() -> None:
    """Prepares nothing."""


def wall_ms(run: Run, prepare: Run = nothing) -> float:
    """The time of a run."""
    prepare()
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


def kernel_ms(run: Run, prepare: Run = nothing) -> float:
    """The time of a second run, which finds memory and caches as the first left them, and not as another contender."""
    prepare()
    run()
    return without_faults(lambda: wall_ms(run, prepare))


def without_faults(measured: Callable[[], float]) -> float:
    """The first time that is not one of page faults; the last of a few, if it never comes without."""
    for _ in range(TRIES):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        ms = measured()
        if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before <= FEW_FAULTS:
            break
    return ms


class OpClock:
    """The time of a second run that has to ask the operating system for every page of its output."""

    def __init__(self) -> None:
        self.give_back = ctypes.CDLL(None).malloc_trim  # glibc's; also frees pages in the middle of the heap

    def __call__(self, run: Run, prepare: Run = nothing) -> float:
        prepare()
        run()
        self.give_back(0)
        return wall_ms(run, prepare)


class ColdClock:
    """The time of a run that finds nothing of its inputs in the caches: several times their size has just been read."""

    def __init__(self) -> None:
        self.elsewhere = torch.ones(l3_bytes())  # four bytes each; pages of zeros would all be the same one

    def __call__(self, run: Run, prepare: Run = nothing) -> float:
        def measured() -> float:
            prepare()
            self.elsewhere.sum()
            return wall_ms(run)

        return without_faults(measured)


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

    def __call__(self, run: Run, prepare: Run = nothing) -> float:
        prepare()
        for _ in range(self.READS):
            self.elsewhere.sum()
        self.started.record()
        run()
        self.ended.record()
        self.ended.synchronize()
        return self.started.elapsed_time(self.ended)


def clocks_of(device: torch.device) -> dict[str, Clock]:
    """What a device is timed with, by name; without glibc there is no "op"."""
    if device.type == "cuda":
        return {COLD: CudaClock(device)}
    has_trim = hasattr(ctypes.CDLL(None), "malloc_trim")
    return {KERNEL: kernel_ms, COLD: ColdClock(), **({OP: OpClock()} if has_trim else {})}


def l3_bytes() -> int:
    """The size of the last cache of the first core, as Linux gives it."""
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return int(size.read_text().removesuffix("K\n")) << 10 if size.exists() else L3_WHERE_UNKNOWN


def take_turns(
    contenders: Mapping[str, Run],
    rounds: int,
    *,
    clock: Clock = kernel_ms,
    prepare: Run = nothing,
    seconds: float = float("inf"),
) -> dict[str, Timing]:
    """Time each contender once per round; after ``seconds`` only the first three rounds begin.

    Args:
        contenders: name -> what is timed.
        rounds: how many times.
        clock: how a time is taken.
        prepare: what comes before every run, untimed.
        seconds: after which no further round begins.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name, contender in contenders.items():
            times[name].append(clock(contender, prepare))
    percentiles = {name: np.percentile(ms, (50, 20, 80)) for name, ms in times.items()}
    return {name: Timing(*map(float, ms)) for name, ms in percentiles.items()}
