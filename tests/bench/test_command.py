"""``sparsekern bench``: which cases, what is not run again, what is printed, how it ends."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from sparsekern import cli
from sparsekern.bench import cases, command, record
from sparsekern.bench.measure import Case, Measured, measure
from sparsekern.bench.record import rows_of
from sparsekern.ops.backend import overridden

CPU = torch.device("cpu")
SMALL = [Case("csr_linear", "f32", 40, 64, 48, d) for d in (0.01, 0.5)]
SMALL += [Case("csr_linear forward and backward", "f32", 40, 64, 48, 0.1), Case("abs_topk", "f32", 40, 64, 48, 0.25)]


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that were measured; one round each, and small ones for ``--quick``."""
    seen: list[Case] = []

    def once(build: cases.Builder, case: Case, device: torch.device, seconds: float) -> Measured:
        seen.append(case)
        return measure(build, case, device, rounds=1, seconds=seconds)

    monkeypatch.setattr(record, "measure", once)
    monkeypatch.setitem(cases.GROUPS, "quick", lambda: SMALL)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)  # the other tests of this process go on without
    return seen


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the command on small cases; gives its exit status and what it printed."""

    def call(*options: str) -> tuple[int, str]:
        out = tmp_path / "cpu.csv"
        done = CliRunner().invoke(cli.app, ["bench", "--quick", "--out", str(out), *options], env={"COLUMNS": "200"})
        return done.exit_code, done.output

    return call


@pytest.fixture(autouse=True)
def console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "console", Console(width=200))


def test_cases_by_device_and_op() -> None:
    assert command.cases_for(CPU, [], quick=False) == cases.cpu()
    assert command.cases_for(torch.device("cuda"), [], quick=False) == cases.goals() + cases.sweep()
    assert command.cases_for(torch.device("cuda"), [], quick=True) == cases.goals()
    assert command.cases_for(CPU, ["csr_linear"], quick=True) == SMALL[:3]
    assert command.cases_for(CPU, ["csr_linear f", "abs"], quick=True) == SMALL[2:]
    with pytest.raises(ValueError, match=r"--op must begin one of csr_linear, .*abs_topk; got 'linear'"):
        command.cases_for(CPU, ["linear"], quick=True)


def test_what_has_rows_is_not_measured_again(
    bench: Callable[..., tuple[int, str]], counted: list[Case], tmp_path: Path
) -> None:
    status, text = bench("--op", "csr_linear f")
    assert (status, counted) == (0, [SMALL[2]])
    assert text.startswith("1 of 1: csr_linear forward and backward f32 tokens=40 64x48 density=10.000%")
    status, text = bench()
    assert (status, counted) == (0, [SMALL[2], SMALL[0], SMALL[1], SMALL[3]])
    assert f"{SMALL[2]}: measured before\n" in text
    assert bench()[0] == 0
    assert len(counted) == 4
    rows = list(csv.DictReader((tmp_path / "cpu.csv").open()))
    assert {record.case_of(row) for row in rows} == set(SMALL)
    assert len({(record.case_of(r), r["clock"], r["contender"]) for r in rows}) == len(rows)
    commands = {row["command"] for row in rows}
    assert commands == {
        "sparsekern bench --quick --op 'csr_linear f' --device cpu",
        "sparsekern bench --quick --device cpu",
    }


def test_the_end(bench: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    _, text = bench()
    out = tmp_path / "cpu.csv"
    assert "Density at which dense is as fast:" in text
    assert text.endswith(f"Rows are in {out} and {out.with_suffix('.png')}\n")
    assert out.with_suffix(".png").exists()


def test_a_wrong_kernel_is_reported_and_fails(bench: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    wrong = {"csr_linear": lambda x, values, crow, *_: x.new_ones(len(x), len(crow) - 1)}
    with overridden(wrong, "cpu"):
        status, text = bench("--op", "csr_linear", "--op", "abs_topk")
    assert status == 1
    assert text.count("not timed: sparsekern cpu: wrong by ") == 3
    rows = list(csv.DictReader((tmp_path / "cpu.csv").open()))
    assert {row["op"] for row in rows} == {"abs_topk"}  # the rest is measured all the same


def test_the_table() -> None:
    case = SMALL[0]
    rows = rows_of(case, measure(cases.BUILDERS[case.op], case, CPU, rounds=1))
    drawn = command.table("title", rows)
    assert [column.header for column in drawn.columns] == [
        *("milliseconds", "kernel", "cold", "op", "20-80 %", "x dense", "x torch", "of limit")
    ]
    lines = {line[0]: line[1:] for line in zip(*(column.cells for column in drawn.columns), strict=True)}
    kernel, cold, op = (row for row in rows if row["contender"] == "sparsekern cpu")
    spread = f"{kernel['p20_ms']:.3g}-{kernel['p80_ms']:.3g}"
    medians = [f"{row['median_ms']:.3g}" for row in (kernel, cold, op)]
    ratios = [f"{kernel[column]:.3g}" for column in ("vs_dense", "vs_torch")]
    assert lines["sparsekern cpu"] == (*medians, spread, *ratios, f"{kernel['vs_limit']:.0%}")
    assert lines["fma"][4:] == ("", "", "")
    assert [command.shown(value) for value in (0.01234, 12.34, 12345.6, None)] == ["0.0123", "12.3", "12346", ""]
