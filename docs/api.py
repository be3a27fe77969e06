"""Builds the API pages, one for each public module, from the docstrings: ``python docs/api.py FOLDER``."""

import importlib
import pkgutil
import sys
from pathlib import Path

import pdoc

import sparsekern

DEEPER = ("sparsekern.circuits.workbench", "sparsekern.ops.reference")  # the others' names are in their packages


def modules() -> list[str]:
    """The package, its packages and modules, and what else is meant to be imported by its full name."""
    found = [m.name for m in pkgutil.iter_modules(sparsekern.__path__) if not m.name.startswith(("_", "cli"))]
    return ["sparsekern", *(f"sparsekern.{name}" for name in found), *DEEPER]


def build(folder: Path) -> None:
    pdoc.render.configure(docformat="google")
    pages = {name: pdoc.doc.Module(importlib.import_module(name)) for name in modules()}
    for name, module in pages.items():
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pdoc.render.html_module(module, pages))
    (folder / "index.html").write_text(pdoc.render.html_index(pages))
    (folder / "search.js").write_text(pdoc.render.search_index(pages))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
