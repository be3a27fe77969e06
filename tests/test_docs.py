"""The examples in README and docs run, and what they assert holds."""

import importlib.util
import inspect
import os
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

ROOT = Path(__file__).parent.parent


def blocks(path: Path) -> list[tuple[int, str]]:
    """The Python blocks of a Markdown file, with the lines at which they begin."""
    text = path.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in found]


def run(path: Path, parts: list[tuple[int, str]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for line, code in parts:
        exec(compile("\n" * line + code, str(path), "exec"), names)
    return names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("agg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sparsekern.data.corpus._SIMPLE_PROGRAMS", 1500)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "docs").glob("*.md") if blocks(path)))
def test_examples_run(name: str) -> None:
    path = ROOT / "docs" / f"{name}.md"
    threads = torch.get_num_threads()
    run(path, blocks(path))
    assert torch.get_num_threads() == threads


def test_each_of_the_three_users_has_one() -> None:
    assert {path.stem for path in (ROOT / "docs").glob("*.md") if len(blocks(path)) > 2} == {
        "engineer",
        "researcher",
        "topology",
    }


def test_the_first_example_of_the_readme_runs() -> None:
    first = blocks(ROOT / "README.md")[:1]
    names = run(ROOT / "README.md", first)
    assert names["optimizer"].mode == "sparse"
    assert os.listdir(".") == []


def test_every_public_name_has_its_place_in_the_api_pages(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    api.build(tmp_path)
    for name in api.modules():
        page = (tmp_path / f"{name.replace('.', '/')}.html").read_text()
        module = importlib.import_module(name)
        assert module.__doc__
        for public in getattr(module, "__all__", ()):
            if inspect.ismodule(getattr(module, public)):
                continue  # it has a page of its own
            assert f'id="{public}"' in page, f"{name}.{public}"
            assert getattr(getattr(module, public), "__doc__", None), f"{name}.{public}"
    assert {"sparsekern", "sparsekern.ops", "sparsekern.nn", "sparsekern.circuits.workbench"} <= set(api.modules())
