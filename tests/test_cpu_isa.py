"""Choosing the instruction set: by call, by environment."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from backends import available_isas

import sparsekern

ISAS = ["base", "avx2", "avx512"]


@pytest.fixture
def restore_isa() -> Iterator[None]:
    before = sparsekern.cpu_isa()
    yield
    sparsekern.set_cpu_isa(before)


def isa_of_a_new_process(asked: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "SPARSEKERN_CPU_ISA"}
    if asked is not None:
        environment["SPARSEKERN_CPU_ISA"] = asked
    code = "import sparsekern; print(sparsekern.cpu_isa())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.usefixtures("restore_isa")
@pytest.mark.parametrize("name", ISAS)
def test_a_set_is_taken_or_refused(name: str) -> None:
    if name in available_isas():
        sparsekern.set_cpu_isa(name)
        assert sparsekern.cpu_isa() == sparsekern.build_info()["cpu_isa"] == name
    else:
        before = sparsekern.cpu_isa()
        with pytest.raises(ValueError, match=f"set_cpu_isa: this CPU has no {name}"):
            sparsekern.set_cpu_isa(name)
        assert sparsekern.cpu_isa() == before


@pytest.mark.parametrize("name", ["", "sse", "AVX2", "avx512 "])
def test_unknown_sets_are_refused(name: str) -> None:
    before = sparsekern.cpu_isa()
    with pytest.raises(ValueError, match=f"name must be base, avx2 or avx512, got {name}"):
        sparsekern.set_cpu_isa(name)
    assert sparsekern.cpu_isa() == before


def test_the_best_set_is_the_default() -> None:
    assert isa_of_a_new_process(None) == sparsekern.build_info()["cpu_isa_detected"] == available_isas()[-1]


@pytest.mark.parametrize("asked", ISAS)
def test_the_environment_can_only_lower_it(asked: str) -> None:
    best = available_isas()[-1]
    assert isa_of_a_new_process(asked) == min(asked, best, key=ISAS.index)


def test_build_info() -> None:
    info = sparsekern.build_info()
    assert set(info) == {
        "version",
        "compiler",
        "cpu_isas",
        "cpu_isa_detected",
        "cpu_isa",
        "torch_abi_floor",
        "torch_built_with",
    }
    assert info["version"] == sparsekern.__version__
    assert info["cpu_isas"] == ISAS[: len(info["cpu_isas"])]
    assert info["cpu_isa_detected"] in info["cpu_isas"]
