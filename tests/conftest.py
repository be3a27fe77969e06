"""Fixtures for everything that runs kernels."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, so before anything imports them

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for each other's; see set_threads
    torch.set_num_threads(1)

import hypothesis
from backends import available_backends, available_isas, gpu_backends, running
from command import Command, Result

hypothesis.settings.register_profile("ci", max_examples=30, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile("ci")
collect_ignore = [] if torch.cuda.is_available() else ["gpu"]  # run by `make gpu`


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with each instruction set in turn."""
    with running(request.param):
        yield request.param


@pytest.fixture(params=available_backends())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with each instruction set in turn, then with the kernels for a GPU."""
    with running(request.param):
        yield request.param


@pytest.fixture(params=gpu_backends())
def gpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with the kernels for a GPU."""
    with running(request.param):
        yield request.param


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def sparsekern_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command as the installed script does."""
    from sparsekern import cli

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["sparsekern", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out + err)

    return call
