"""The wheel, in an environment that has torch and nothing else, runs the first example of the README."""

import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from test_docs import ROOT, blocks


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the last build left, so in seconds."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("-q", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "-w", str(folder))
    pip("wheel", *options, str(ROOT))
    (path,) = folder.glob("sparsekern-*.whl")
    return path


def pip(*arguments: str) -> None:
    ended = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def needed_by(*names: str) -> set[str]:
    """These packages and all that they need, as far as they are installed."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            left += [re.split(r"[^\w.-]", r)[0] for r in requirements if "extra ==" not in r]
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with torch, numpy, what these need, and the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in needed_by("torch", "numpy"):
        for file in distribution(name).files or ():
            top = file.parts[0]
            source = Path(distribution(name).locate_file(top))
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(source)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps", str(wheel))
    return python


def test_the_example_of_the_readme_runs_from_the_wheel(python: Path, tmp_path: Path) -> None:
    ((_, code), *_) = blocks(ROOT / "README.md")
    code += "\nimport sys\nprint(sk.__file__)\nassert 'safetensors' not in sys.modules\n"
    ended = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert str(python.parent.parent) in ended.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        requires = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", packed.read(metadata).decode(), re.MULTILINE)
    assert {name.split("/")[0] for name in names} == {"sparsekern", metadata.split("/")[0]}
    for part in ("_ops.so", "py.typed", "circuits/page/page.js", "ops/csr_linear.py", "_triton/csr_linear.py"):
        assert f"sparsekern/{part}" in names
    assert sorted(requires) == ["numpy", "torch"]
