"""The report and the picture: what they read, where dense wins, which goals are met, what is drawn."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from sparsekern.bench.cases import goals, training
from sparsekern.bench.measure import Case, Work
from sparsekern.bench.plots import plot, roofline, roofs, same_size, speedups
from sparsekern.bench.record import append_rows
from sparsekern.bench.report import GOALS, Result, break_even, markdown, one_clock, ours, read_results

CASE = Case("csr_linear", "bf16", 65536, 8192, 2048, 0.004)


def result(density: float, vs_dense: float, **vs: float) -> Result:
    return Result(replace(CASE, density=density), "sparsekern cuda", 1.0, {"dense": vs_dense, **vs})


def write(path: Path, case: Case, medians: dict[str, float], clock: str = "cold") -> None:
    to = {"vs_dense": medians.get("dense"), "vs_copy": medians.get("copy")}
    for name, ms in medians.items():
        ratios = {column: other / ms for column, other in to.items() if other}
        row = {**vars(case), "clock": clock, "contender": name, "median_ms": ms, "bytes": 80, "flops": 50, **ratios}
        append_rows(path, [row])


def test_the_last_row_of_a_case_counts(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    write(path, CASE, {"copy": 1, "sparsekern cuda": 9})
    write(path, CASE, {"copy": 1, "dense": 6, "sparsekern cuda": 2})
    read = {r.contender: r for r in read_results(path)}
    assert set(read) == {"copy", "dense", "sparsekern cuda"}
    assert read["sparsekern cuda"] == Result(
        CASE, "sparsekern cuda", 2.0, {"dense": 3.0, "copy": 0.5}, "cold", Work(80, 50)
    )


def test_kernel_time_is_shown_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    write(path, CASE, {"sparsekern cpu": 9}, "cold")
    assert [r.median_ms for r in one_clock(read_results(path))] == [9]
    write(path, CASE, {"sparsekern cpu": 2}, "kernel")
    assert [r.median_ms for r in one_clock(read_results(path))] == [2]
    assert [r.median_ms for r in ours(read_results(path))] == [9, 2]


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


# ---- the picture


def linear_rows(clock: str = "kernel") -> list[Result]:
    """Dense takes 8 ms, torch.sparse 400 and we 100 per unit of density, the limit 1, at three densities."""
    rows = []
    for density in (0.1, 0.01, 0.5):
        case = replace(CASE, density=density)
        work = Work(bytes=1000, flops=int(1e6 * density))
        for name, ms in {
            "dense f32": 8,
            "torch.sparse CSR f32": 400 * density,
            "sparsekern cpu": 100 * density,
        }.items():
            rows.append(Result(case, name, ms, {"dense": 8 / ms, "limit": 1 / ms}, clock, work))
        rows.append(Result(case, "copy", 1, {"dense": 8}, clock, Work(bytes=1000)))
        rows.append(Result(case, "fma", 2, {}, clock, Work(flops=10**8)))
    return rows


def test_speedups_are_to_the_fastest_dense() -> None:
    curves = speedups(linear_rows())
    assert set(curves) == {"dense f32", "torch.sparse CSR f32", "sparsekern cpu", "limit"}
    assert curves["sparsekern cpu"] == [(1, 8), (10, pytest.approx(0.8)), (50, pytest.approx(0.16))]
    assert curves["torch.sparse CSR f32"][0] == (1, 2)
    assert [y for _, y in curves["limit"]] == pytest.approx([8, 8, 8])


def test_the_size_with_most_densities_is_drawn() -> None:
    few = [replace(r, case=replace(r.case, tokens=1 << 20)) for r in linear_rows() if r.case.density < 0.5]
    assert same_size(few + linear_rows()) == linear_rows()


def test_the_roofline_is_of_cold_caches() -> None:
    cached = [replace(r, median_ms=r.median_ms / 10) for r in linear_rows() if r.contender != "fma"]
    rows = cached + linear_rows("cold")
    assert roofs(rows) == (1000, 5 * 10**7)
    points = [(100, 1e4), (10, 1e4), (500, 1e4)]  # ours takes 100 ms for 1e6 operations, at every density
    assert roofline(rows) == {"csr_linear": [(pytest.approx(x), pytest.approx(y)) for x, y in points]}


def test_plot(tmp_path: Path) -> None:
    path = tmp_path / "cpu.png"
    assert not plot([], path)
    assert plot(linear_rows() + linear_rows("cold"), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_break_even_is_marked() -> None:
    from matplotlib.figure import Figure

    from sparsekern.bench.plots import draw_speedup

    axes = Figure().subplots()
    draw_speedup(axes, linear_rows())
    even = 100 * break_even(ours(linear_rows()))
    assert even == pytest.approx(8)
    assert [text.get_text().strip() for text in axes.texts] == ["break-even 8 %"]
    assert any(list(line.get_xdata()) == [even, even] for line in axes.lines)
