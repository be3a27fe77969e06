"""Launches of kernels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Runs ``programs`` programs of a kernel.  Products and sums are fused, which Triton 3.10 will not do unasked."""
    kernel[(programs,)](*arguments, enable_fp_fusion=True, **constants)


@dataclass(frozen=True, eq=False)
class Tile:
    """One way of cutting a problem: constants of the kernel, and how it is compiled."""

    constants: Mapping[str, int]
    num_warps: int
    num_stages: int


def launch_best(
    kernel: Any,
    tiles: Sequence[Tile],
    programs: Callable[[Mapping[str, int]], int],
    key: Sequence[str],
    *arguments: Any,
    **constants: Any,
) -> None:
    """Runs a kernel with the fastest of ``tiles``, or the first where there is no GPU to find out.

    Args:
        programs: how many a tile needs.
        key: arguments of the kernel, by name; for each combination of their values, and of dtypes, all tiles are timed
            once.
    """
    if any(isinstance(t, Tensor) and t.is_cuda for t in arguments):
        tuned = _autotuned(kernel, tuple(tiles), tuple(key))
        tuned[lambda meta: (programs(meta),)](*arguments, enable_fp_fusion=True, **constants)
        return
    first = tiles[0]
    options = {"num_warps": first.num_warps, "num_stages": first.num_stages}
    launch(kernel, programs(first.constants), *arguments, **first.constants, **constants, **options)


@cache
def _autotuned(kernel: Any, tiles: tuple[Tile, ...], key: tuple[str, ...]) -> Any:
    configs = [triton.Config(dict(t.constants), num_warps=t.num_warps, num_stages=t.num_stages) for t in tiles]
    return triton.autotune(configs, key=list(key))(kernel)


def precision(dtype: torch.dtype) -> str:
    """How factors of ``dtype`` are multiplied: "ieee" without tensor cores, "tf32" with them. Those of float32 as
    ``torch.set_float32_matmul_precision`` says for torch's own; those of 16 bits lose nothing."""
    if dtype == torch.float32:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "ieee" if dtype == torch.float64 else "tf32"
