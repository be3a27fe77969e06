"""The timer: turns, percentiles, rows."""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsekern.bench.timer import CudaClock, Timing, append_rows, take_turns


def test_contenders_take_turns_and_the_first_run_of_a_turn_is_not_timed() -> None:
    calls: list[str] = []

    def slow_at_first() -> None:
        time.sleep(0.01 if calls[-1:] == ["a"] else 0.2)
        calls.append("a")

    timings = take_turns({"a": slow_at_first, "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "a", "b", "b"] * 3
    assert 10 <= timings["a"].median_ms < 100
    assert timings["a"].p20_ms <= timings["a"].median_ms <= timings["a"].p80_ms


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "results" / "op.csv"
    for density in (0.1, 0.2):
        append_rows(path, {"density": density}, take_turns({"a": int, "b": int}, rounds=1), command="bench")
    rows = list(csv.DictReader(path.open()))
    assert [(r["density"], r["contender"]) for r in rows] == [("0.1", "a"), ("0.1", "b"), ("0.2", "a"), ("0.2", "b")]
    assert all(r["command"] == "bench" and r["device"] and float(r["median_ms"]) >= 0 for r in rows)


def test_prepare_runs_before_each_run_and_a_clock_decides_what_counts() -> None:
    calls: list[str] = []

    def clock(run: Callable[[], object]) -> float:
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
    take_turns({"a": lambda: calls.append(1)}, rounds=9, clock=lambda run: run() or 1.0, seconds=0)
    assert len(calls) == 3
    take_turns({"a": lambda: calls.append(1)}, rounds=9, clock=lambda run: run() or 1.0, seconds=60)
    assert len(calls) == 3 + 9


def test_ratios_to_other_contenders(tmp_path: Path) -> None:
    path = tmp_path / "op.csv"
    timings = {"ours": Timing(2.0, 1, 3), "dense": Timing(8.0, 7, 9)}
    append_rows(path, {"density": 0.1}, timings, "bench", against={"vs_dense": "dense", "vs_copy": "copy"})
    ours, dense = csv.DictReader(path.open())
    assert (float(ours["vs_dense"]), float(dense["vs_dense"])) == (4, 1)
    assert ours["vs_copy"] == dense["vs_copy"] == ""
    assert list(ours)[-3:] == ["p80_ms", "vs_dense", "vs_copy"]


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


def test_rows_name_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    append_rows(tmp_path / "op.csv", {}, {"ours": Timing(1, 1, 1)}, "bench", device=torch.device("cuda"))
    (row,) = csv.DictReader((tmp_path / "op.csv").open())
    assert (row["device"], row["isa"]) == ("NVIDIA H100 80GB HBM3", "sm_90")
