"""Every Triton kernel, compiled ahead of time for NVIDIA and AMD: it fits, and reads memory in wide loads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from offline_triton import TARGETS

ROOT = Path(__file__).parent.parent.parent
KIB = 1024
SHARED_LIMITS = {"80": 163 * KIB, "90": 227 * KIB, "100": 227 * KIB, "gfx942": 64 * KIB}
REGISTERS = {"80": 65536, "90": 65536, "100": 65536, "gfx942": 4 * 512 * 64}  # of a multiprocessor
EVERYWHERE = 99 * KIB  # consumer GPUs have no more
KERNELS = {
    "_abs_topk",
    "_bsr_linear",
    "_bsr_sddmm",
    "_count_digits",
    "_count_rows",
    "_csr_linear",
    "_csr_sddmm",
    "_cut_neurons",
    "_find_digit",
    "_mask_by_bits",
    "_write_rows",
}

Report = list[dict[str, Any]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A process of its own compiles, because in this one kernels may be defined for the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tests" / "offline_triton.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows: Report = json.loads(done.stdout)
    return rows


every_target = pytest.mark.parametrize("target", [str(arch) for _, arch in TARGETS])


def on(report: Report, target: str, *kernels: str) -> Report:
    rows = [row for row in report if row["target"] == target and (not kernels or row["name"] in kernels)]
    assert rows
    return rows


@every_target
def test_every_kernel_compiles(report: Report, target: str) -> None:
    assert {row["name"] for row in on(report, target)} == KERNELS
    for dtype in ("float32", "bfloat16", "float16"):
        compiled = {row["name"] for row in on(report, target) if row["arguments"].startswith(dtype)}
        assert compiled >= {"_csr_linear", "_csr_sddmm", "_abs_topk", "_mask_by_bits"}


@every_target
def test_nothing_spills(report: Report, target: str) -> None:
    assert [row for row in on(report, target) if row["spills"] > 0] == []


@every_target
def test_programs_fit_a_multiprocessor(report: Report, target: str) -> None:
    for row in on(report, target):
        assert row["shared"] <= min(EVERYWHERE, SHARED_LIMITS[target]), row
        assert 0 < row["registers"] * row["threads"] <= REGISTERS[target] // 2, row  # two at a time


@every_target
def test_activations_and_weights_are_read_in_wide_loads(report: Report, target: str) -> None:
    streaming = ("_abs_topk", "_csr_linear", "_csr_sddmm", "_count_digits", "_write_rows")
    blocks = on(report, target, "_bsr_linear", "_bsr_sddmm")
    on_tensor_cores = [row for row in blocks if row["arguments"] == "bfloat16 blocks of 128"]
    for row in [*on(report, target, *streaming), *on_tensor_cores]:
        assert row["wide_loads"] > 0, row
