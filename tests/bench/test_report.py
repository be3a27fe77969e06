"""The report: what it reads, where dense wins, which goals are met."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from sparsekern.bench.cases import goals, training
from sparsekern.bench.measure import Case
from sparsekern.bench.report import GOALS, Result, break_even, markdown, ours, plot, read_results
from sparsekern.bench.timer import Timing, append_rows

CASE = Case("csr_linear", "bf16", 65536, 8192, 2048, 0.004)


def result(density: float, vs_dense: float, **vs: float) -> Result:
    return Result(replace(CASE, density=density), "sparsekern cuda", 1.0, {"dense": vs_dense, **vs})


def write(path: Path, case: Case, medians: dict[str, float]) -> None:
    timings = {name: Timing(ms, ms, ms) for name, ms in medians.items()}
    against = {"vs_dense": "dense", "vs_torch": "torch.sparse f32", "vs_copy": "copy"}
    append_rows(path, vars(case), timings, "bench", against=against)


def test_the_last_row_of_a_case_counts(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    write(path, CASE, {"copy": 1, "sparsekern cuda": 9})
    write(path, CASE, {"copy": 1, "dense": 6, "sparsekern cuda": 2})
    read = {r.contender: r for r in read_results(path)}
    assert set(read) == {"copy", "dense", "sparsekern cuda"}
    assert read["sparsekern cuda"] == Result(CASE, "sparsekern cuda", 2.0, {"dense": 3.0, "copy": 0.5})


def test_break_even_is_between_two_densities() -> None:
    rows = [result(0.1, 0.25), result(0.001, 8), result(0.01, 4)]
    assert break_even(rows) == pytest.approx(0.01 * math.sqrt(10))  # 4 -> 1/4: half way in logarithms
    assert break_even([result(0.01, 4), result(0.1, 1)]) == math.inf
    assert break_even([result(0.01, 0.9), result(0.1, 0.1)]) == 0
    assert break_even(rows[:1]) is None


def test_ours_is_the_first_of_ours() -> None:
    rows = [Result(CASE, name, 1.0, {}) for name in ("copy", "sparsekern cuda", "sparsekern triton")]
    assert [r.contender for r in ours(rows)] == ["sparsekern cuda"]


def rows_that_just_reach_every_goal() -> list[Result]:
    (adamw,) = (case for case in goals() if case.op == "adamw_project_")
    topk = next(case for case in goals() if case.op == "abs_topk")
    return [
        result(0.004, 4.5, copy=0.75),
        result(0.02, 1.0),
        result(0.05, 0.5),
        Result(topk, "sparsekern cuda", 1.0, {"copy": 0.8, "torch": 20}),
        Result(adamw, "sparsekern cuda", 1.0, {"torch": 1 / 1.7 + 1e-9}),
        *(Result(case, "sparsekern cuda", 1.0, {"dense": 15}) for case in training()[:2]),
    ]


def verdicts(results: list[Result]) -> list[str]:
    return [goal.line(results).split("|")[-2].strip() for goal in GOALS]


def test_goals() -> None:
    rows = rows_that_just_reach_every_goal()
    assert verdicts(rows) == ["yes"] * len(GOALS)
    worse = [replace(r, vs={name: 0.99 * v for name, v in r.vs.items()}) for r in rows]
    assert verdicts(worse) == ["no"] * len(GOALS)
    assert verdicts([]) == [""] * len(GOALS)
    assert all("not yet measured" in goal.line([]) for goal in GOALS)
    assert GOALS[0].line(rows).endswith("| >= 4.50 x | 4.50 x | yes |")
    assert GOALS[1].line(rows).endswith("| >= 75 % | 75 % | yes |")


def test_markdown(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    for density, ms in ((0.01, 2), (0.02, 4)):
        medians = {"copy": 1, "dense": 3, "sparsekern cuda": ms, "sparsekern triton": 5}
        write(path, replace(CASE, density=density), medians)
    text = markdown(read_results(path), "NVIDIA H100", {"build": "passed in 3 s"})
    assert text.startswith("# NVIDIA H100\n\n| step | |\n| --- | --- |\n| build | passed in 3 s |\n")
    assert (
        "dtype | tokens | n x k | density | copy, ms | dense, ms | sparsekern cuda, ms | sparsekern triton, ms" in text
    )
    assert "| bf16 | 65536 | 8192 x 2048 | 1 % | 1 | 3 | 2 | 5 | 1.50 |  | 50 % |" in text
    even = 100 * 0.01 * 2 ** (math.log(1.5) / math.log(2))
    assert f"| bf16 | 65536 | 8192 x 2048 | {even:.3g} % |" in text
    assert markdown([], "NVIDIA H100", {}).count("not yet measured") == len(GOALS)


def test_plot(tmp_path: Path) -> None:
    path = tmp_path / "gpu.png"
    assert not plot([], path)
    rows = [Result(replace(CASE, density=d), c, 1.0, {}) for d in (0.01, 0.1) for c in ("dense", "sparsekern cuda")]
    assert plot(rows, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
