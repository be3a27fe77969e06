"""Which kernel runs: one pure function per op, from shape, density, dtype and device."""

from dataclasses import dataclass

import torch

# Density from which torch's dense matmul is the faster one: on a CPU in float32, measured (linear_cpu.csv); on a GPU in
# bfloat16, by arithmetic (docs/gpu.md), not yet measured.
BREAK_EVEN = {"cpu": 0.3, "cuda": 0.02}


@dataclass(frozen=True)
class KernelChoice:
    """The kernel that runs and why; prints as one sentence."""

    kernel: str  # "csr" or "dense"
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.reason}"


def is_dense_faster(shape: tuple[int, int], nnz: int, device: str = "cpu") -> bool:
    """Whether a matrix of ``shape`` with so many nonzeros is denser than the break-even of a device's kind."""
    return nnz > BREAK_EVEN["cpu" if device == "cpu" else "cuda"] * max(1, shape[0] * shape[1])


def choose_linear(shape: tuple[int, int], nnz: int, dtype: torch.dtype, device: str = "cpu") -> KernelChoice:
    """How a linear layer of ``shape`` (N, K) that holds both forms of its weight, sparse and dense, is computed."""
    density = nnz / max(1, shape[0] * shape[1])
    what = f"{shape[0]} x {shape[1]}, {nnz:,} nonzeros ({density:.2%}), {dtype}, {device}".replace("torch.", "")
    break_even = BREAK_EVEN["cpu" if device == "cpu" else "cuda"]
    if is_dense_faster(shape, nnz, device):
        return KernelChoice("dense", f"{what}: denser than the break-even of {break_even:.0%}")
    return KernelChoice("csr", f"{what}: at or below the break-even of {break_even:.0%}")


@dataclass(frozen=True)
class TilePlan:
    """How the CUDA kernels of the linear ops cut a problem (csrc/cuda/tile_plan.h)."""

    panel_cols: int  # features of x in shared memory at a time
    panels: int  # passes over x
    blocks: int  # thread blocks side by side along the tokens
    shares: int  # thread blocks that share tokens and take different rows of the weight
    shared_bytes: int  # of shared memory per thread block


def plan_tiles(
    shape: tuple[int, int],
    nnz: int,
    tokens: int,
    dtype: torch.dtype,
    *,
    sampled: bool = False,
    multiprocessors: int = 132,
    shared_bytes: int = 227 << 10,
) -> TilePlan:
    """The plan for a weight of ``shape`` (N, K), by default on an H100; ``sampled`` for gradients of values."""
    from .._native import tile_plan  # links to the library that this package loads

    n, k = shape
    return TilePlan(**tile_plan(n, k, nnz, tokens, dtype.itemsize, sampled, multiprocessors, shared_bytes))
