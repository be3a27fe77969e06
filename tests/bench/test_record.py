"""Rows: ratios, the limit, one schema, what is measured already."""

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from sparsekern.bench import record
from sparsekern.bench.measure import Case, Measured, Work, limit_ms
from sparsekern.bench.record import COLUMNS, append_rows, file_name, finished, measure_and_record, rows_of, setting
from sparsekern.bench.timer import Timing

CPU = torch.device("cpu")
CASE = Case("csr_linear", "f32", 40, 64, 48, 0.01)
MEDIANS = {
    "copy": 1.0,
    "fma": 0.5,
    "dense f32": 8.0,
    "dense bf16": 6.0,
    "torch.sparse CSR f32": 20.0,
    "torch.sparse BSR f32": 30.0,
    "sparsekern cpu": 4.0,
}


def timings(medians: Mapping[str, float]) -> dict[str, Timing]:
    return {name: Timing(ms, 0.5 * ms, 2 * ms) for name, ms in medians.items()}


def measured(
    clocks: Mapping[str, Mapping[str, float]], work: Work, failed: Mapping[str, str] | None = None
) -> Measured:
    by_clock = {clock: timings(medians) for clock, medians in clocks.items()}
    return Measured(by_clock, failed or {}, "torch.sparse", work, fma_work=Work(flops=1000))


def test_the_limit_is_the_longer_of_two_times() -> None:
    assert limit_ms(copy_ms=2.0, flops=300, flops_per_ms=100.0) == 3.0
    assert limit_ms(copy_ms=4.0, flops=300, flops_per_ms=100.0) == 4.0
    assert limit_ms(copy_ms=4.0, flops=0, flops_per_ms=100.0) == 4.0


def test_ratios_are_to_the_fastest_of_each_kind_on_the_same_clock() -> None:
    slower = {name: 3 * ms for name, ms in MEDIANS.items()} | {"dense f32": 2.0}
    rows = rows_of(CASE, measured({"kernel": MEDIANS, "op": slower}, Work(bytes=80, flops=5000)))
    assert len(rows) == 2 * len(MEDIANS)
    kernel, op = (r for r in rows if r["contender"] == "sparsekern cpu")
    assert (kernel["clock"], kernel["median_ms"], kernel["p20_ms"], kernel["p80_ms"]) == ("kernel", 4, 2, 8)
    ratios = {name: kernel[name] for name in ("vs_dense", "vs_torch", "vs_copy", "vs_limit")}
    assert ratios == {"vs_dense": 1.5, "vs_torch": 5, "vs_copy": 0.25, "vs_limit": 2.5 / 4}  # 5000 at 1000 in 0.5 ms
    assert (op["clock"], op["vs_dense"], op["vs_limit"]) == ("op", 2 / 12, 7.5 / 12)


def test_every_contender_has_its_own_work() -> None:
    rows = rows_of(CASE, measured({"kernel": MEDIANS}, Work(bytes=80, flops=5000)))
    done = {r["contender"]: (r["bytes"], r["flops"]) for r in rows}
    assert done.pop("copy") == (80, 0)
    assert done.pop("fma") == (0, 1000)
    assert set(done.values()) == {(80, 5000)}
    assert not any(name.startswith("vs_") for r in rows if r["contender"] == "fma" for name in r)


def test_without_work_or_rivals_there_are_no_ratios() -> None:
    (row,) = rows_of(CASE, measured({"kernel": {"sparsekern cpu": 4}}, Work()))
    assert not any(name.startswith("vs_") for name in row)
    copied = rows_of(CASE, measured({"kernel": {"copy": 1, "sparsekern cpu": 4}}, Work(bytes=80)))
    assert copied[1]["vs_limit"] == 0.25


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu.csv"
    for density in (0.1, 0.2):
        append_rows(path, [{"density": density, "contender": name} for name in "ab"])
    rows = list(csv.DictReader(path.open()))
    assert [(r["density"], r["contender"]) for r in rows] == [("0.1", "a"), ("0.1", "b"), ("0.2", "a"), ("0.2", "b")]
    assert tuple(rows[0]) == COLUMNS
    with pytest.raises(ValueError, match="another"):
        append_rows(path, [{"another": 1}])


def test_measured_cases_are_finished(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    assert finished(path, {}) == {}
    measure_and_record(CASE, CPU, path, "sparsekern bench", about={"source": "abc"}, seconds=0)
    rows = list(csv.DictReader(path.open()))
    assert {r["clock"] for r in rows} == {"kernel", "cold", "op"}
    assert all(r["command"] == "sparsekern bench" and r["date"] and float(r["median_ms"]) > 0 for r in rows)
    assert setting(CPU).items() <= rows[0].items()
    assert set(finished(path, setting(CPU))) == {CASE}
    assert {"copy", "fma", "dense f32", "dense bf16", "sparsekern cpu"} < finished(path, {"source": "abc"})[CASE]
    assert finished(path, setting(CPU) | {"threads": "99"}) == {}


def test_a_wrong_result_leaves_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpu.csv"

    def measure(*_: object, **__: object) -> Measured:
        return measured({"kernel": {"dense f32": 1}}, Work(), failed)

    monkeypatch.setattr(record, "measure", measure)
    failed = {"sparsekern cpu": "wrong by 1"}
    assert measure_and_record(CASE, CPU, path, "bench").wrong == failed
    assert not path.exists()
    failed = {"sparsekern cuda": "CUDA out of memory. Tried", "dense bf16": "wrong by 1"}  # too large, and a rival
    assert measure_and_record(CASE, CPU, path, "bench").wrong == {}
    assert path.exists()


def test_rows_name_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda = torch.device("cuda")
    assert (setting(cuda)["device"], setting(cuda)["isa"]) == ("NVIDIA H100 80GB HBM3", "sm_90")
    assert file_name(cuda) == "nvidia_h100_80gb_hbm3.csv"
    monkeypatch.setattr(record, "device_name", lambda device: "Some(R) CPU @ 2.80GHz")
    assert file_name(CPU) == "some_r_cpu_2_80ghz.csv"
