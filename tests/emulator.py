"""The CUDA kernels on the CPU: builds ``_emu.so`` (csrc/emu), loads it, and puts its ops in place of the CPU's."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
ON_THE_CPU_ONLY = {"csr_validate", "csr_linear_dense_grad"}


def build(kind: str = "ON") -> Path:
    """The library, built where it is out of date; ``kind`` is ON, or ASAN for AddressSanitizer."""
    folder = ROOT / "build" / f"emu-{kind.lower()}"
    options = {
        "Python_EXECUTABLE": sys.executable,
        "SPARSEKERN_TORCH_DIR": torch.__path__[0],
        "SPARSEKERN_EMU": kind,
        "SPARSEKERN_CUDA": "OFF",
    }
    configure = ["cmake", "-S", ROOT, "-B", folder, "-GNinja", *(f"-D{k}={v}" for k, v in options.items())]
    for command in (configure, ["cmake", "--build", folder, "--target", "sparsekern_emu"]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "_emu.so"


@cache
def implementations() -> dict[str, Callable[..., Any]]:
    """Every raw op that has a CUDA kernel, as a function on CPU tensors that runs it."""
    names = [
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("sparsekern::")
    ]
    names = [name for name in names if name not in ON_THE_CPU_ONLY]
    library = torch.library.Library("sparsekern_emu", "DEF")
    for name in names:
        schema = str(getattr(torch.ops.sparsekern, name).default._schema)
        library.define(schema.partition("::")[2])
    implementations.library = library  # type: ignore[attr-defined]  # lives as long as the process
    torch.ops.load_library(build())
    return {name: getattr(torch.ops.sparsekern_emu, name).default for name in names}
