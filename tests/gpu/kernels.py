"""Every op at a few odd shapes, against the CPU: short enough to be run under compute-sanitizer.

python tests/gpu/kernels.py [cuda]
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from backends import GPU_DTYPES, running
from opcases import CASES, RAW_CALLS, Draw, OpCase
from torch import Tensor

FEWEST_SHAPES = 2  # of each op's, which begin with the odd ones


def outcomes(case: OpCase, dtype: torch.dtype, index: torch.dtype) -> Iterator[Tensor]:
    """Results and gradients at the first shapes, where the ops run now; drawn from the same seed everywhere."""
    draw = Draw(dtype, index)
    for shape in case.shapes[:FEWEST_SHAPES]:
        problem = case.build(shape, draw)
        leaves = [t.requires_grad_() for t in problem.inputs] if case.small else list(problem.inputs)
        y = problem.op(*leaves)
        yield y.detach()
        if case.small:
            yield from torch.autograd.grad(y, leaves, torch.ones_like(y))


def raw_outcomes(dtype: torch.dtype) -> Iterator[Tensor]:
    """What each raw op returns, or leaves in the arguments that it changes."""
    for name, calls in RAW_CALLS.items():
        for op, arguments in calls(Draw(dtype)):
            with torch.no_grad():
                results = op(*arguments)
            changed = [a for a in arguments if isinstance(a, list)] if name.startswith("adamw_") else []
            for group in [results if isinstance(results, tuple) else (results,), *changed]:
                yield from (t.detach() for t in group if isinstance(t, Tensor))


def assert_same(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """``dtype`` is that of the activations: gradients of values are float32 always."""
    tolerance = 2e-2 if dtype in GPU_DTYPES else 1e-4
    scale = float(expected.double().abs().max()) if expected.numel() else 0.0
    difference = actual.double().cpu() - expected.double()
    assert actual.shape == expected.shape, what
    assert (difference.abs() <= tolerance * (1 + scale)).all(), f"{what}: off by {float(difference.abs().max()):.2e}"


def main(backend: str) -> int:
    """Returns how many results were compared."""
    compared = 0
    for case in CASES:
        for dtype, index in ((torch.float32, torch.int32), (torch.bfloat16, torch.int64)):
            with running(backend):
                actual = [t.cpu() for t in outcomes(case, dtype if backend != "default" else torch.float32, index)]
            expected = list(outcomes(case, torch.float32, index))
            if case.rounding == 0 and dtype in GPU_DTYPES:
                continue  # equal magnitudes are more frequent in bfloat16: other entries are kept
            for a, e in zip(actual, expected, strict=True):
                assert_same(a, e, dtype, f"{case} {dtype}")
                compared += 1
    with running(backend):
        actual = [t.cpu() for t in raw_outcomes(torch.float32)]
    for a, e in zip(actual, raw_outcomes(torch.float32), strict=True):
        assert_same(a, e, torch.float32, "raw ops")
        compared += 1
    return compared


if __name__ == "__main__":
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that the end of every tensor is the end of an allocation
    print(f"{main(sys.argv[1] if len(sys.argv) > 1 else 'cuda')} results are right")
