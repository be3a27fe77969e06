"""The timer: turns, percentiles, rows."""

import csv
import time
from pathlib import Path

from sparsekern.bench.timer import append_rows, take_turns


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
