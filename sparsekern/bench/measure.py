"""Measuring one case: contenders that compute the same, each checked before any is timed."""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import gpu_backend
from .timer import Clock, CudaClock, Timing, take_turns, wall_ms

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SAMPLES = 64  # rows of a result, or positions of a gradient, that are compared with float64
COPY, DENSE = "copy", "dense"  # contenders that most cases have: as many bytes moved and nothing else; torch's dense op


@dataclass(frozen=True)
class Case:
    """One size of one op.

    Attributes:
        op: a key of :data:`sparsekern.bench.cases.BUILDERS`.
        dtype: of the activations, "f32" or "bf16".
        tokens: rows of the activations; 0 where there are none.
        n, k: shape of the weight; of a model its width and its number of layers.
        density: fraction of the weight, or of the activations of abs_topk, that is kept.
    """

    op: str
    dtype: str
    tokens: int
    n: int
    k: int
    density: float

    def __str__(self) -> str:
        return f"{self.op} {self.dtype} tokens={self.tokens} {self.n}x{self.k} density={self.density:.3%}"


@dataclass(frozen=True)
class Problem:
    """Contenders that compute the same.

    Attributes:
        contenders: name -> what is timed; ours begin with "sparsekern".
        check: of a contender's result, unless that is None; raises AssertionError where it is wrong.
        baseline: the contender that a user of torch has today.
        prepare: called before every run, untimed.
    """

    contenders: Mapping[str, Callable[[], Any]]
    check: Callable[[Any], None]
    baseline: str
    prepare: Callable[[], object] | None = None


Builder = Callable[[Case, torch.device], Problem]


def measure(
    build: Builder, case: Case, device: torch.device, rounds: int = 25, seconds: float = 1.0
) -> tuple[dict[str, Timing], dict[str, str], str]:
    """Check every contender of a case, then time in turns those that are right.

    Returns the timings, why the other contenders have none, and the name of the baseline.

    Raises:
        RuntimeError: an error that the GPU does not recover from.
    """
    right: dict[str, Callable[[], Any]] = {}
    failed: dict[str, str] = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # torch says that its CSR is in beta
        problem = build(case, device)
        for name, contender in problem.contenders.items():
            try:
                run_and_check(contender, problem)
                right[name] = contender
            except (RuntimeError, AssertionError) as error:
                if "CUDA error" in str(error):
                    raise
                failed[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            if name in failed and device.type == "cuda":  # only now does nothing hold its tensors any more
                torch.cuda.empty_cache()
        clock: Clock = CudaClock(device) if device.type == "cuda" else wall_ms
        timings = take_turns(right, rounds, clock=clock, prepare=problem.prepare, seconds=seconds) if right else {}
    return timings, failed, problem.baseline


def run_and_check(contender: Callable[[], Any], problem: Problem) -> None:
    """Check a second run, whose result most likely lies in memory that the first one's has left full of NaN."""
    for last in (False, True):
        if problem.prepare is not None:
            problem.prepare()
        result = contender()
        if last and result is not None:
            problem.check(result)
        for t in result if isinstance(result, tuple) else (result,):
            if isinstance(t, Tensor) and t.is_floating_point():
                t.fill_(torch.nan)
        del result


def implementations(device: torch.device) -> dict[str, Mapping[str, Callable[..., Any]]]:
    """Our contenders: name -> raw op -> function."""
    names = [
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("sparsekern::")
    ]
    native = {name: getattr(torch.ops.sparsekern, name).default for name in names}
    if device.type == "cpu":
        return {"sparsekern cpu": native}
    found: dict[str, Mapping[str, Callable[..., Any]]] = {f"sparsekern {gpu_backend()}": native}
    if gpu_backend() != "triton" and importlib.util.find_spec("triton"):
        from .._triton import IMPLEMENTATIONS

        found["sparsekern triton"] = IMPLEMENTATIONS
    return found


def copy_of(bytes_moved: int, device: torch.device) -> Callable[[], None]:
    """Moves ``bytes_moved`` in all: half of them read, half written."""
    source = torch.randn(max(1, bytes_moved // 8), device=device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)

    return run


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """By norms; 1e-2 for bfloat16 (half of it for the result, half for a rival's rounded weight), 1e-4 for float32."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} for {tuple(expected.shape)}"
    tolerance = 1e-2 if actual.dtype == torch.bfloat16 else 1e-4
    error = float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30))
    assert error <= tolerance, f"wrong by {error:.1e} of the norm"  # also if it is NaN


def assert_written(t: Tensor) -> None:
    assert t.isfinite().all(), "an element was not written, or is not finite"


def sample(count: int, device: torch.device) -> Tensor:
    """Some of ``count`` indices, the first and the last among them."""
    drawn = torch.randint(count, (SAMPLES,), device=device)
    return torch.cat([drawn, torch.tensor([0, count - 1], device=device)])
