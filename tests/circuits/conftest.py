"""A circuit that is known, found and described."""

import pytest
from planted import Planted, binding, decode, nasty

from sparsekern.circuits import Circuit, Task, describe, find_cut


@pytest.fixture(scope="session")
def planted() -> Planted:
    return binding()


@pytest.fixture(scope="session")
def circuit(planted: Planted) -> Circuit:
    subject = planted.subject
    found = find_cut(subject, planted.train, budget=1)
    assert found is not None
    cue = f"the name {nasty()}"
    task = Task("binding", "`S` vs <b>T</b>", cue, planted.train, planted.test, (("", ""), ("", "")))
    return describe(subject, task, found.cut, [planted.text[:64]], decode, 0.15, None)
