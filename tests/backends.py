"""What the ops can run on: the CPU's instruction sets, a GPU where there is one, and the GPU's kernels without one."""

from collections.abc import Iterator
from contextlib import contextmanager

import emulator
import torch

import sparsekern
from sparsekern.ops.backend import overridden

GPU_DTYPES = (torch.bfloat16, torch.float16)


def available_isas() -> list[str]:
    """The instruction sets that were built and that this CPU has, lowest first."""
    info = sparsekern.build_info()
    built: list[str] = info["cpu_isas"]
    return built[: built.index(info["cpu_isa_detected"]) + 1]


def gpu_backends() -> list[str]:
    """The kernels for a GPU: on it, or emulated."""
    return ["cuda"] if torch.cuda.is_available() else ["emulated"]


def available_backends() -> list[str]:
    return available_isas() + gpu_backends()


@contextmanager
def running(backend: str) -> Iterator[None]:
    """Within the block the ops run on ``backend``; new tensors are where it wants them."""
    if backend == "emulated":
        with overridden({**emulator.implementations(), **emulator.WITHOUT_A_KERNEL}, "cpu"):
            yield
    elif backend == "cuda":
        with torch.device("cuda"):
            yield
    elif backend == "default":
        yield
    else:
        before = sparsekern.cpu_isa()
        sparsekern.set_cpu_isa(backend)
        yield
        sparsekern.set_cpu_isa(before)
