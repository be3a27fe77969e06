"""The CUDA kernels on the CPU: builds ``_emu.so`` (csrc/emu), loads it, and puts its ops in place of the CPU's."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sparsekern.ops.backend import TRITON_ONLY
from sparsekern.ops.csr_sddmm import sums_composite

ROOT = Path(__file__).parent.parent
COMPOSITES = {"bsr_linear_active", "csr_linear_active", "csr_linear_dense_grad", "observe"}  # made of other ops
BY_TORCH = {"causal_attention", "causal_attention_backward", "rms_norm", "rms_norm_backward"}  # on a GPU
WITHOUT_A_KERNEL = {"csr_sddmm_sums": sums_composite}  # there; made of one that has
ON_THE_CPU_ONLY = {"csr_validate", *WITHOUT_A_KERNEL, *BY_TORCH, *COMPOSITES}
TARGETS = {"_emu.so": "sparsekern_emu", "emulated.so": "sparsekern_emulated"}
KIND = os.environ.get("SPARSEKERN_EMU_KIND", "ON")  # what this process loads


@cache
def build(library: str, kind: str = KIND) -> Path:
    """One of ``TARGETS``, built where it is out of date; ``kind`` is ON, or ASAN for AddressSanitizer."""
    folder = ROOT / "build" / f"emu-{kind.lower()}"
    options = {
        "Python_EXECUTABLE": sys.executable,
        "SPARSEKERN_TORCH_DIR": torch.__path__[0],
        "SPARSEKERN_EMU": kind,
        "SPARSEKERN_CUDA": "OFF",
    }
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # see run_under_asan
    configure = ["cmake", "-S", ROOT, "-B", folder, "-GNinja", *(f"-D{k}={v}" for k, v in options.items())]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of these tests may be building it
        for command in (configure, ["cmake", "--build", folder, "--target", TARGETS[library]]):
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / library


@cache
def implementations() -> dict[str, Callable[..., Any]]:
    """Every raw op that has a CUDA kernel, as a function on CPU tensors that runs it."""
    names = [
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("sparsekern::")
    ]
    names = [name for name in names if name not in {*ON_THE_CPU_ONLY, *TRITON_ONLY}]
    library = torch.library.Library("sparsekern_emu", "DEF")
    for name in names:
        schema = str(getattr(torch.ops.sparsekern, name).default._schema)
        library.define(schema.partition("::")[2])
    implementations.library = library  # type: ignore[attr-defined]  # lives as long as the process
    torch.ops.load_library(build("_emu.so"))
    return {name: getattr(torch.ops.sparsekern_emu, name).default for name in names}


def runtime(library: str) -> str:
    """Where the compiler has a library of its own."""
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={library}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_under_asan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python, in which AddressSanitizer watches all of C's memory and the libraries of kind ASAN their access."""
    runtimes = [runtime("libasan.so"), runtime("libstdc++.so.6")]  # the second too, or exceptions pass unseen
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SPARSEKERN_EMU_KIND": "ASAN",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
