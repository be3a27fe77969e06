"""The timer: turns, percentiles, and what each clock's runs find."""

import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from sparsekern.bench.timer import FEW_FAULTS, ColdClock, CudaClock, clocks_of, kernel_ms, l3_bytes, take_turns


def test_contenders_take_turns_and_the_first_run_of_a_turn_is_not_timed() -> None:
    calls: list[str] = []

    def slow_at_first() -> None:
        time.sleep(0.01 if calls[-1:] == ["a"] else 0.2)
        calls.append("a")

    timings = take_turns({"a": slow_at_first, "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "a", "b", "b"] * 3
    assert 10 <= timings["a"].median_ms < 100
    assert timings["a"].p20_ms <= timings["a"].median_ms <= timings["a"].p80_ms


def test_prepare_runs_before_each_run_and_a_clock_decides_what_counts() -> None:
    calls: list[str] = []

    def clock(run: Callable[[], object], prepare: Callable[[], object]) -> float:
        prepare()
        run()
        return len(calls)

    timings = take_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=2,
        clock=clock,
        prepare=lambda: calls.append("p"),
    )
    assert calls == ["p", "a", "p", "b"] * 2
    assert timings["a"].median_ms == (2 + 6) / 2


def test_no_round_begins_after_the_time_but_three_are_run() -> None:
    calls: list[int] = []
    take_turns({"a": lambda: calls.append(1)}, rounds=9, clock=lambda run, _: run() or 1.0, seconds=0)
    assert len(calls) == 3
    take_turns({"a": lambda: calls.append(1)}, rounds=9, clock=lambda run, _: run() or 1.0, seconds=60)
    assert len(calls) == 3 + 9


def test_kernel_time_prepares_both_runs() -> None:
    calls: list[str] = []
    kernel_ms(lambda: calls.append("a"), lambda: calls.append("p"))
    assert calls == ["p", "a", "p", "a"]  # what changes its input in place finds it as it was


def test_the_cold_clock_reads_much_else_just_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsekern.bench.timer.l3_bytes", lambda: 1000)
    clock, calls = ColdClock(), []
    assert clock.elsewhere.nbytes == 4000
    assert clock.elsewhere.all()  # written: memory that never was is one page of zeros
    clock.elsewhere = SimpleNamespace(sum=lambda: calls.append("read"))
    clock(lambda: calls.append("run"), lambda: calls.append("prepare"))
    assert calls == ["prepare", "read", "run"]


def test_the_size_of_the_last_cache() -> None:
    assert 1 << 18 <= l3_bytes() <= 1 << 32


FAULTS = """
import resource, sparsekern, torch
from sparsekern.bench.timer import clocks_of

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    before = faults()
    result = torch.ones(1 << 21)
    counted.append(faults() - before)

sparsekern.keep_freed_memory()
for clock in clocks_of(torch.device("cpu")).values():
    counted = []
    clock(run, lambda: None)
    print(counted[-1])
"""


def test_only_op_time_sees_page_faults() -> None:
    assert list(clocks_of(torch.device("cpu"))) == ["kernel", "cold", "op"]
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kernel, cold, op = map(int, done.stdout.split())
    assert max(kernel, cold) <= FEW_FAULTS
    assert op >= (4 << 21) / 4096 / 2  # half of the pages: the rest may be huge ones


class FakeCuda:
    """What :class:`CudaClock` asks of torch.cuda, on a GPU whose time is the number of things asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None, synchronize=lambda: self.asked.append("wait"))

        def record() -> None:
            event.at = len(self.asked)
            self.asked.append("record")

        event.record = record
        event.elapsed_time = lambda end: float(end.at - event.at)
        return event


def test_the_clock_of_a_gpu_times_what_lies_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1000))
    clock = CudaClock(torch.device("cpu"))
    assert clock.elsewhere.numel() * clock.elsewhere.element_size() == 4000
    assert clock(lambda: fake.asked.extend(["a", "b"])) == 3
    assert fake.asked == ["record", "a", "b", "record", "wait"]
