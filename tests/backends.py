"""What the ops can run on: the CPU's instruction sets, a GPU where there is one, and the GPU's kernels without one."""

from collections.abc import Iterator
from contextlib import contextmanager

import emulator
import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import sparsekern
from sparsekern._triton import IMPLEMENTATIONS
from sparsekern.ops.backend import TRITON_ONLY, overridden

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


def _mend_interpreter() -> None:
    """Triton's interpreter keeps bfloat16 as integers, and its matrix product would multiply these."""
    multiply = InterpreterBuilder.create_dot

    def widened(factor: TensorHandle) -> TensorHandle:
        if factor.dtype.scalar != tl.bfloat16:
            return factor
        return TensorHandle((factor.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: object) -> TensorHandle:
        return multiply(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot


_mend_interpreter()


@contextmanager
def running(backend: str) -> Iterator[None]:
    """Within the block the ops run on ``backend``; new tensors are where it wants them."""
    if backend == "emulated":
        by_triton = {name: IMPLEMENTATIONS[name] for name in TRITON_ONLY}
        with overridden({**emulator.implementations(), **emulator.WITHOUT_A_KERNEL, **by_triton}, "cpu"):
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
