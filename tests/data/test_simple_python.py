"""Made-up programs: valid Python, the same every time, and full of the idioms they are for."""

import ast

from sparsekern.data import SIMPLE_PYTHON, load_corpus
from sparsekern.data import corpus as corpus_module
from sparsekern.data.corpus import load_documents
from sparsekern.data.simple_python import simple_programs


def test_programs_are_valid_python() -> None:
    for program in simple_programs(400):
        ast.parse(program)


def test_programs_are_the_same_for_the_same_seed() -> None:
    assert simple_programs(5, seed=1) == simple_programs(9, seed=1)[:5]
    assert simple_programs(5, seed=1) != simple_programs(5, seed=2)
    assert len(set(simple_programs(500))) == 500


def test_defaults_follow_defaults_and_names_are_known() -> None:
    """What a model can learn: ``ast`` refuses the first; the second is a rule of the grammar."""
    for program in simple_programs(100):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                names = {a.arg for a in node.args.args}
                copied = [
                    n.value.id for n in ast.walk(node) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Name)
                ]
                assert set(copied) == names - {"self"}


def test_they_are_a_source_of_a_corpus(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus_module, "_SIMPLE_PROGRAMS", 300)
    other = tmp_path / "a.py"
    other.write_text("print('hello')\n")
    assert load_documents([SIMPLE_PYTHON]) == simple_programs(300)
    assert load_documents([str(other), SIMPLE_PYTHON]) == ["print('hello')\n", *simple_programs(300)]
    corpus = load_corpus([SIMPLE_PYTHON], vocab_size=400, cache_dir=tmp_path / "cache")
    assert corpus.documents == 300
    assert len(corpus.train) > 20_000
