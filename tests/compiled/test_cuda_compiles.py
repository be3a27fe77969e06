"""Without a GPU: nvcc compiles every kernel and g++ every binding, and the machine code is what it should be."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from emulator import BY_TORCH

from sparsekern.ops.backend import TRITON_ONLY

if not (shutil.which("nvcc") or os.environ.get("CUDACXX")):
    pytest.skip("needs nvcc, CUDA's compiler", allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "cuda-check"  # kept: a second run compiles only what has changed
ARCHS = ("sm_80", "sm_90a", "sm_100")
KERNELS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
BINDINGS = sorted({path.stem for path in (ROOT / "csrc" / "torch").glob("*.cpp")} - {"native", *BY_TORCH, *TRITON_ONLY})
MOST_STATIC_SHARED = 48 << 10

# Kernels that stream, by file: each must read memory 16 bytes at a time.
STREAMING = {
    "abs_topk": ("keep_topk", "mask_entries"),
    "adamw_project": ("count_first_digit",),
    "adamw_select": ("count_first_digit", "settle_weights"),
    "csr_linear": ("tile_kernel",),
    "csr_sddmm": ("tile_kernel",),
    "floor": ("reserve_rows",),
    "select": ("collect", "write"),
    "topk_project": ("count_first_digit",),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel as compiled for one architecture."""

    signature: str
    stack: int
    local: int
    shared: int
    wide_loads: int  # of 16 bytes, from global memory

    @property
    def name(self) -> str:
        found = re.search(r"sk::cuda::(?:\(anonymous namespace\)::)?(\w+)", self.signature)
        assert found
        return found[1]


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "SPARSEKERN_TORCH_DIR": torch.__path__[0],
        "SPARSEKERN_CUDA": "CHECK",
        "SPARSEKERN_CUDA_ARCHS": ";".join(arch.removeprefix("sm_") for arch in ARCHS),
    }
    run("cmake", "-S", ROOT, "-B", BUILD, "-GNinja", *(f"-D{key}={value}" for key, value in options.items()))
    run("cmake", "--build", BUILD, "--target", "sparsekern_cuda")


def compiled(source: str) -> Path:
    return BUILD / "CMakeFiles" / "sparsekern_cuda.dir" / "csrc" / f"{source}.o"


@cache
def cuda_tools() -> Path:
    """The folder of cuobjdump and nvdisasm: CUDA's own, or the one in triton's wheel."""
    on_path = shutil.which("cuobjdump")
    if on_path and shutil.which("nvdisasm"):
        return Path(on_path).parent
    triton = find_spec("triton")
    assert triton, "cuobjdump is not on the PATH, and triton, which brings one, is not installed"
    assert triton.submodule_search_locations
    return Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin"


def cuobjdump(option: str, path: Path) -> dict[str, str]:
    """What cuobjdump says of an object file, by architecture."""
    environment = {**os.environ, "PATH": f"{cuda_tools()}{os.pathsep}{os.environ['PATH']}"}  # where it finds nvdisasm
    command = [str(cuda_tools() / "cuobjdump"), option, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("Fatbin elf code:")[1:]
    return {re.search(r"arch = (\w+)", part)[1]: part for part in parts}  # type: ignore[index]


def count_wide_loads(sass: str) -> int:
    return len(re.findall(r"\bLDG\.E\.(?:\w+\.)*128\b", sass))


@cache
def kernels(stem: str) -> dict[str, list[Kernel]]:
    """The kernels of a file, by architecture."""
    path = compiled(f"cuda/{stem}.cu")
    usage, code = cuobjdump("-res-usage", path), cuobjdump("-sass", path)
    assert set(usage) == set(code)
    found = {}
    for arch, text in usage.items():
        bodies = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code[arch], re.DOTALL))
        used = re.findall(r"Function (\w+):\n\s*REG:\d+ STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
        assert len(used) == text.count("REG:") == len(bodies)
        signatures = run("c++filt", *(name for name, *_ in used)).splitlines() if used else []
        found[arch] = [
            Kernel(signature, int(stack), int(local), int(shared), count_wide_loads(bodies[name]))
            for signature, (name, stack, shared, local) in zip(signatures, used, strict=True)
        ]
    return found


@pytest.mark.parametrize("stem", KERNELS)
def test_kernels_are_compiled_for_every_architecture(stem: str) -> None:
    assert set(kernels(stem)) == set(ARCHS)
    names = [{kernel.signature for kernel in found} for found in kernels(stem).values()]
    assert names[0] == names[1] == names[2]
    assert names[0] or "__global__" not in (ROOT / "csrc" / "cuda" / f"{stem}.cu").read_text()


@pytest.mark.parametrize("stem", KERNELS)
def test_kernels_keep_everything_in_registers(stem: str) -> None:
    """A stack frame or local memory means spilled registers, or an array indexed at run time."""
    spilling = [(arch, k) for arch, found in kernels(stem).items() for k in found if k.stack or k.local]
    assert spilling == []


@pytest.mark.parametrize("stem", KERNELS)
def test_static_shared_memory_fits(stem: str) -> None:
    large = [(arch, k) for arch, found in kernels(stem).items() for k in found if k.shared > MOST_STATIC_SHARED]
    assert large == []


@pytest.mark.parametrize(("stem", "name"), [(stem, name) for stem, names in STREAMING.items() for name in names])
def test_streaming_kernels_load_16_bytes_at_a_time(stem: str, name: str) -> None:
    for arch, found in kernels(stem).items():
        streaming = [kernel for kernel in found if kernel.name == name]
        assert streaming, f"{stem}.cu has no kernel {name}"
        assert [(arch, kernel.signature) for kernel in streaming if not kernel.wide_loads] == []


def symbols(path: Path, option: str) -> set[str]:
    """The launchers that an object file defines, or needs."""
    names = run("nm", "-C", option, path)
    return set(re.findall(r"\bsk::cuda::\w+\(.*\)(?: const)?$", names, re.MULTILINE))


def test_bindings_find_every_launcher() -> None:
    defined = set().union(*(symbols(compiled(f"cuda/{stem}.cu"), "--defined-only") for stem in KERNELS))
    needed = {stem: symbols(compiled(f"torch/{stem}.cpp"), "--undefined-only") for stem in BINDINGS}
    assert {stem: names - defined for stem, names in needed.items() if not names or names - defined} == {}
