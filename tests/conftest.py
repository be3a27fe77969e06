"""Fixtures for everything that runs kernels."""

from collections.abc import Callable, Iterator

import pytest
import torch

import sparsekern


def available_isas() -> list[str]:
    """The instruction sets that were built and that this CPU has, lowest first."""
    info = sparsekern.build_info()
    built = info["cpu_isas"]
    return built[: built.index(info["cpu_isa_detected"]) + 1]


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with each instruction set in turn."""
    before = sparsekern.cpu_isa()
    sparsekern.set_cpu_isa(request.param)
    yield request.param
    sparsekern.set_cpu_isa(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
