"""The cases of ``sparsekern bench --quick`` under pytest-benchmark, a test per contender, a group per case.

    pytest benchmarks/ --benchmark-only [-k csr_linear]

Every contender is checked before it is timed. They do not take turns here: on a machine that is not quiet, compare
with ``sparsekern bench``.
"""

from functools import lru_cache
from typing import Any

import pytest
import torch

from sparsekern import keep_freed_memory
from sparsekern.bench.cases import BUILDERS, Case, quick, shrunk
from sparsekern.bench.measure import Problem, all_contenders, run_and_check

CPU = torch.device("cpu")
ROUNDS = 10


@lru_cache(1)  # the contenders of a case come one after the other
def problem_of(case: Case) -> Problem:
    return BUILDERS[case.op](case, CPU)


@torch.no_grad()
def contenders() -> list[Any]:
    """Every contender of every case; who takes part is the same for a small one."""
    names = {case: all_contenders(BUILDERS[case.op](shrunk(case), CPU), CPU) for case in quick()}
    return [pytest.param(case, name, id=f"{case}, {name}") for case, every in names.items() for name in every]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that its CSR is in beta
@pytest.mark.parametrize(("case", "name"), contenders())
@torch.no_grad()
def test_contender(case: Case, name: str, benchmark: Any) -> None:
    keep_freed_memory()
    problem = problem_of(case)
    contender = all_contenders(problem, CPU)[name]
    run_and_check(contender, problem)

    def prepare() -> None:
        problem.prepare()

    benchmark.group = str(case)
    benchmark.pedantic(contender, setup=prepare, rounds=ROUNDS, warmup_rounds=1)
