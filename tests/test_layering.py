"""Who may know whom: imports, includes, symbols, file names and sizes (the table in the design)."""

import ast
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsekern
from sparsekern.ops.backend import TRITON_ONLY

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sparsekern"
CSRC = ROOT / "csrc"

# folder of sparsekern -> what it may import of the rest
MAY_IMPORT = {
    "ops": {"ops", "_triton", "_native"},  # the last two when first used
    "_triton": {"ops", "_triton"},
    "formats": {"ops", "formats"},
    "nn": {"ops", "formats", "nn"},
    "optim": {"ops", "formats", "nn", "optim"},
}
EXTRAS = {"matplotlib", "optuna", "rich", "safetensors", "scipy", "tokenizers", "typer"}
MAY_IMPORT_EXTRAS = {"train", "checkpoint", "circuits", "cli", "cli_circuits", "data", "models", "bench"}

CPU_SYSTEM_HEADERS = {
    "cmath",
    "cstddef",
    "cstdint",
    "cstdlib",
    "cstring",
    "immintrin.h",
    "initializer_list",
    "utility",
}


CUDA_HEADERS = {"cstdio", "cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h", "emu.h"}

# ---- Python imports


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without the bodies of ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from runtime_nodes(child)


def imports_of(source: str, package: str) -> set[str]:
    """Absolute names of what a module of ``package`` imports, also inside functions."""
    names = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    """The folder or module directly below ``sparsekern`` that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_by_file() -> dict[Path, set[str]]:
    return {
        path: imports_of(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts)) for path in python_files()
    }


def test_imports_are_resolved() -> None:
    source = """
import a.b
from . import c
from ..d import e
from f import g
if TYPE_CHECKING:
    from ..h import i
def later():
    import j
"""
    assert imports_of(source, "sparsekern.ops") == {"a.b", "sparsekern.ops.c", "sparsekern.d.e", "f.g", "j"}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_lower_layers_do_not_know_higher_ones(part: str) -> None:
    known = {
        (path.name, name)
        for path, names in imports_by_file().items()
        if part_of(path) == part
        for name in names
        if name.startswith("sparsekern") and name.partition(".")[2].partition(".")[0] not in MAY_IMPORT[part]
    }
    assert known == set()


def test_circuits_do_not_know_training() -> None:
    for path, names in imports_by_file().items():
        if part_of(path) == "circuits":
            assert not any(name.startswith("sparsekern.train") for name in names), path


def test_extras_stay_where_they_are_optional() -> None:
    for path, names in imports_by_file().items():
        if part_of(path) not in MAY_IMPORT_EXTRAS:
            assert not EXTRAS & {name.split(".")[0] for name in names}, path


def test_import_loads_no_extra() -> None:
    code = "import sys, sparsekern; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not (EXTRAS | {"triton"}) & loaded


# ---- C++ includes


def includes_of(path: Path) -> set[str]:
    return set(re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE))


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (CSRC / folder).rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})


def test_bridge_headers_include_only_each_other() -> None:
    for path in sources("include"):
        others = {name for name in includes_of(path) if not name.startswith("sparsekern/")}
        assert others <= {"cstdint"}, path


def test_cpu_kernels_see_no_torch_and_no_containers() -> None:
    own = {path.name for path in sources("cpu") if path.suffix == ".h"}
    for path in sources("cpu"):
        others = {name for name in includes_of(path) if not name.startswith("sparsekern/")}
        assert others <= CPU_SYSTEM_HEADERS | own, path


def test_cuda_kernels_see_only_cuda() -> None:
    own = {path.name for path in sources("cuda") if path.suffix == ".h"}
    for path in sources("cuda"):
        others = {name for name in includes_of(path) if not name.startswith("sparsekern/")}
        cuda = CUDA_HEADERS if path.name == "cuda.h" else set()  # the one place that knows about emulation
        assert others <= own | cuda, path


def test_only_the_bindings_include_torch() -> None:
    including = {
        path.relative_to(CSRC).parts[0]
        for path in sources(".")
        if any(name.startswith(("torch/", "ATen/", "c10/", "pybind11/")) for name in includes_of(path))
    }
    assert including == {"torch"}


def test_bindings_include_only_the_stable_torch() -> None:
    for path in sources("torch"):
        torch_headers = {name for name in includes_of(path) if name.startswith(("torch/", "ATen/", "c10/"))}
        assert all(name.startswith(("torch/csrc/stable/", "torch/headeronly/")) for name in torch_headers), path


# ---- symbols


def nm(*arguments: str | Path) -> str:
    return subprocess.run(["nm", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_library_needs_no_unstable_torch_symbol() -> None:
    needed = nm("-D", "-C", "--undefined-only", PACKAGE / "_ops.so")
    assert "aoti_torch" in needed  # the stable interface: the listing is what it should be
    assert [line for line in needed.splitlines() if re.search(r"\b(at|c10)::", line)] == []


def kernel_objects() -> list[Path]:
    build = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"  # as in setup.py
    return sorted(build.glob("CMakeFiles/sparsekern_cpu_*.dir/**/*.o"))


def test_kernels_share_no_inline_function() -> None:
    """A weak symbol compiled with AVX-512 could replace the one that an older CPU runs."""
    kernels = [path for path in sources("cpu") if path.suffix == ".cpp" and path.name != "isa.cpp"]
    objects = kernel_objects()
    assert len(objects) == len(kernels) * len(sparsekern.build_info()["cpu_isas"])
    for path in objects:
        weak = [line for line in nm("-C", path).splitlines() if re.search(r" [WVu] ", line)]
        assert weak == [], path


# ---- names and sizes


def stems(folder: Path, pattern: str) -> set[str]:
    return {path.stem for path in folder.glob(pattern)}


COMPOSITES = {
    "bsr_linear_active",
    "csr_linear_active",
    "csr_linear_dense_grad",
    "observe",
}  # made of other ops, no kernel of their own
ON_A_GPU_BY_TORCH = {"causal_attention", "rms_norm"}
ON_A_GPU_BY_TRITON = set(TRITON_ONLY)
NOT_OPS = {"__init__", "backend", "choice", "dtypes", "reference", "status"}


def test_an_op_has_the_same_stem_everywhere() -> None:
    with_kernels = stems(PACKAGE / "ops", "*.py") - {"_define"} - COMPOSITES - NOT_OPS
    assert stems(CSRC / "cpu", "*.cpp") - {"isa"} == with_kernels
    in_cuda = with_kernels - ON_A_GPU_BY_TORCH - ON_A_GPU_BY_TRITON
    assert stems(CSRC / "cuda", "*.cu") - {"floor", "select", "status", "transpose"} == in_cuda  # those are shared
    assert stems(CSRC / "torch", "*.cpp") - {"native"} == with_kernels
    assert stems(CSRC / "include" / "sparsekern", "*.h") - {"isa", "parallel", "types"} == with_kernels
    triton_parts = {"__init__", "activations", "checks", "launch", "magnitude", "plain"}
    assert stems(PACKAGE / "_triton", "*.py") - triton_parts <= with_kernels


def test_files_are_short() -> None:
    folders = (PACKAGE, CSRC, ROOT / "tests")
    lines = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}
    }
    assert {path: n for path, n in lines.items() if n > 600} == {}
    of_ops = {
        path: n for path, n in lines.items() if path.is_relative_to("sparsekern/ops") and path.stem != "reference"
    }
    assert {path: n for path, n in of_ops.items() if n > 150} == {}
