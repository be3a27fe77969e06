"""Compiles Triton kernels for GPUs that are not there, with the compilers and disassemblers that come with Triton.

Inside ``compiled_for`` a launch compiles its kernel, from the real arguments (tensors on the CPU or on meta), and does
not run it.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from sparsekern._triton import IMPLEMENTATIONS

_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class _Driver:
    """What launches and compilers ask of a driver, answered for a GPU that does not exist."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self._target = target
        self._device = device

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0


_devices: dict[GPUTarget, int] = {}  # kernels remember the target of a device, so each target is a device of its own


@contextmanager
def compiled_for(backend: str, arch: int | str) -> Iterator[list[Any]]:
    """Fills the list with the compiled kernels of the launches inside, each once."""
    target = GPUTarget(backend, arch, 64 if backend == "hip" else 32)
    kernels: list[Any] = []
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        if not any(kernel is known for known in kernels):
            kernels.append(kernel)
        return kernel

    active = driver._active
    driver.set_active(_Driver(target, _devices.setdefault(target, len(_devices))))
    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = launch
        driver._active = active


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    name: str
    threads: int
    registers: int  # per thread
    spills: int  # instructions on local memory, or bytes of it on AMD
    shared: int  # bytes
    wide_loads: int  # instructions that load 16 bytes per thread


def resources(kernel: Any) -> Resources:
    threads = kernel.metadata.num_warps * kernel.metadata.target.warp_size
    shared = kernel.metadata.shared
    if "cubin" in kernel.asm:
        usage, sass = _disassemble(kernel.asm["cubin"])
        registers = int(re.findall(r"\bREG:(\d+)", usage)[0])
        spills = _instructions(sass, "LDL") + _instructions(sass, "STL")
        return Resources(
            kernel.name, threads, registers, spills, shared, _instructions(sass, r"LDG(?:STS)?(?:\.\w+)*\.128")
        )
    text = kernel.asm["amdgcn"]
    wide_loads = len(re.findall(r"^\s*(?:buffer|global)_load_dwordx4\b", text, re.MULTILINE))
    spills = _amd_field(text, "private_segment_fixed_size")
    return Resources(kernel.name, threads, _amd_field(text, "vgpr_count"), spills, shared, wide_loads)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run("cuobjdump", "-res-usage", file.name), _run("nvdisasm", file.name)


def _run(tool: str, *arguments: str) -> str:
    command = [str(_NVIDIA_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(sass: str, name: str) -> int:
    """How many instructions match ``name``, whatever predicate and further modifiers they have."""
    return len(re.findall(rf"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?{name}\b", sass, re.MULTILINE))


def _amd_field(text: str, field: str) -> int:
    found = re.search(rf"^\s*\.{field}:\s*(\d+)", text, re.MULTILINE)
    assert found, f"no {field} in the assembly"
    return int(found[1])


# ---- the kernels of sparsekern

TARGETS: tuple[tuple[str, int | str], ...] = (("cuda", 80), ("cuda", 90), ("cuda", 100), ("hip", "gfx942"))
TOKENS, HIDDEN, MODEL = 2048, 8192, 2048
NNZ = HIDDEN * MODEL // 1000


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_linear(dtype: torch.dtype, index: torch.dtype) -> None:
    """Up and down projection of a layer at a density of 0.1 %, with what their gradients launch."""
    for n, k in ((HIDDEN, MODEL), (MODEL, HIDDEN)):
        pattern = [empty(length, dtype=index) for length in (n + 1, NNZ, k + 1, NNZ, NNZ)]
        x, y = empty(TOKENS, k, dtype=dtype), empty(TOKENS, n, dtype=dtype)
        IMPLEMENTATIONS["csr_linear"](x, empty(NNZ), *pattern, empty(n), False)
        IMPLEMENTATIONS["csr_linear"](y, empty(NNZ), *pattern, None, True)
        IMPLEMENTATIONS["csr_sddmm"](y, x, *pattern)


def launch_blocks(dtype: torch.dtype, side: int, tokens: int) -> None:
    """The projections of a layer in blocks of which a tenth is there."""
    rows, cols = HIDDEN // side, MODEL // side
    blocks = rows * cols // 10
    pattern = [empty(length, dtype=torch.int32) for length in (rows + 1, blocks, cols + 1, blocks, blocks)]
    x, y, values = empty(tokens, MODEL, dtype=dtype), empty(tokens, HIDDEN, dtype=dtype), empty(blocks, side, side)
    IMPLEMENTATIONS["bsr_linear"](x, values, *pattern, empty(HIDDEN), HIDDEN, False)
    IMPLEMENTATIONS["bsr_linear"](y, values, *pattern, None, MODEL, True)
    IMPLEMENTATIONS["bsr_sddmm"](y, x, *pattern, side, side)


def launch_abs_topk(width: int, dtype: torch.dtype) -> None:
    x = empty(TOKENS, width, dtype=dtype)
    _, kept = IMPLEMENTATIONS["abs_topk"](x, width // 16)
    IMPLEMENTATIONS["abs_topk_backward"](x, kept)


def launch_project() -> None:
    for floor, axis in ((0, 0), (2, 0), (2, 1)):
        IMPLEMENTATIONS["topk_project_"](empty(HIDDEN, MODEL), 10 * NNZ, floor, axis)
    IMPLEMENTATIONS["topk_select"](empty(HIDDEN, MODEL), 10 * NNZ, 0, 0)


def launch_all() -> Iterator[tuple[str, Callable[[], None]]]:
    """Every kernel for every dtype, by a name for the arguments.

    On meta tensors, which have no data: a launcher that waited for any, or whose shapes depended on it, would fail.
    """
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield f"{name} int32", partial(launch_linear, dtype, torch.int32)
        yield name, partial(launch_abs_topk, HIDDEN, dtype)
    yield "float32 int64", partial(launch_linear, torch.float32, torch.int64)
    yield "float32 wide", partial(launch_abs_topk, 65536, torch.float32)
    yield "float32", launch_project
    for dtype, side, tokens in ((torch.float32, 64, 2048), (torch.bfloat16, 16, 2048), (torch.bfloat16, 128, 65536)):
        name = str(dtype).removeprefix("torch.")
        yield f"{name} blocks of {side}", partial(launch_blocks, dtype, side, tokens)


def main() -> None:
    """Prints what the kernels take on every target, as JSON."""
    report = []
    for backend, arch in TARGETS:
        for arguments, launch in launch_all():
            with compiled_for(backend, arch) as kernels:
                launch()
            for kernel in kernels:
                report.append({"target": str(arch), "arguments": arguments, **asdict(resources(kernel))})
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
