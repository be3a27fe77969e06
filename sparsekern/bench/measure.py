"""Measuring one case: contenders that compute the same, each checked before any is timed."""

import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import gpu_backend
from .timer import Timing, clocks_of, nothing, take_turns

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
PATIENCE, MUCH_SLOWER = 1.0, 1.5  # seconds of a run, and times as long, from which only the fastest of a kind is timed
SAMPLES = 64  # rows of a result, or positions of a gradient, that are compared with float64
OURS, DENSE = "sparsekern", "dense"  # how the names of our contenders, and of torch's dense ones, begin
COPY, FMA = "copy", "fma"  # contenders that show the limit: as many bytes moved and nothing else; a matmul in the cache
FMA_SIDE = {"cpu": 384, "cuda": 4096}  # rows and columns of its matrices: in the L2 cache; large enough for a whole GPU


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
class Work:
    """What has to be done whatever the method.

    Attributes:
        bytes: of the inputs and the outputs, each once.
        flops: operations on nonzeros; an FMA is two.
        in_place: the outputs take the place of inputs.
    """

    bytes: int = 0
    flops: int = 0
    in_place: bool = False


NO_WORK = Work()


@dataclass(frozen=True)
class Problem:
    """Contenders that compute the same.

    Attributes:
        contenders: name -> what is timed; the names of ours begin with "sparsekern", those of torch's dense op with
            "dense".
        check: of a contender's result, unless that is None; raises AssertionError where it is wrong.
        baseline: how the names of the contenders begin that a user of torch has today.
        work: of the case; the contenders "copy" and "fma", which show the limit that it sets, are made from it.
        prepare: called before every run, untimed.
    """

    contenders: Mapping[str, Callable[[], Any]]
    check: Callable[[Any], None]
    baseline: str
    work: Work = NO_WORK
    prepare: Callable[[], object] = nothing


Builder = Callable[[Case, torch.device], Problem]


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` found.

    Attributes:
        timings: clock -> contender -> its time.
        failed: contender -> why it was not timed.
        baseline, work: of the problem.
        fma_work: of the contender "fma".
    """

    timings: Mapping[str, Mapping[str, Timing]]
    failed: Mapping[str, str]
    baseline: str
    work: Work
    fma_work: Work

    @property
    def timed(self) -> set[str]:
        """The contenders that have times."""
        return {name for timings in self.timings.values() for name in timings}

    @property
    def wrong(self) -> dict[str, str]:
        """Our contenders that failed: a rival may, and a case may be too large for anyone."""
        ours = {name: why for name, why in self.failed.items() if name.startswith(OURS)}
        return {name: why for name, why in ours.items() if "out of memory" not in why}


def measure(build: Builder, case: Case, device: torch.device, rounds: int = 25, seconds: float = 1.0) -> Measured:
    """Check every contender of a case, then time in turns those that are right.

    Args:
        build: of the case's op.
        case, device: what is measured, and where.
        rounds, seconds: of each clock, as in :func:`sparsekern.bench.timer.take_turns`.

    Raises:
        RuntimeError: an error that the GPU does not recover from.
    """
    right: dict[str, Callable[[], Any]] = {}
    failed: dict[str, str] = {}
    took: dict[str, float] = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # torch says that its CSR is in beta
        problem = build(case, device)
        for name, contender in all_contenders(problem, device).items():
            try:
                took[name] = run_and_check(contender, problem)
                right[name] = contender
            except (RuntimeError, AssertionError) as error:
                if "CUDA error" in str(error):
                    raise
                failed[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            if name in failed and device.type == "cuda":  # only now does nothing hold its tensors any more
                torch.cuda.empty_cache()
        for name, why in outpaced(took, (DENSE, problem.baseline)).items():
            failed[name] = why
            del right[name]
        clocks = clocks_of(device) if right else {}
        timings = {
            name: take_turns(right, rounds, clock=clock, prepare=problem.prepare, seconds=seconds)
            for name, clock in clocks.items()
        }
    fma_work = Work(flops=2 * FMA_SIDE[device.type] ** 3)
    return Measured(timings, failed, problem.baseline, problem.work, fma_work)


def run_and_check(contender: Callable[[], Any], problem: Problem) -> float:
    """Check a second run, whose result most likely lies in memory that the first one's has left full of NaN.

    Returns the seconds it took (on a GPU to ask for it).
    """
    for last in (False, True):
        problem.prepare()
        started = time.perf_counter()
        result = contender()
        seconds = time.perf_counter() - started
        if last and result is not None:
            problem.check(result)
        for t in result if isinstance(result, tuple) else (result,):
            if isinstance(t, Tensor) and t.is_floating_point():
                t.fill_(torch.nan)
        del result
    return seconds


def outpaced(took: Mapping[str, float], kinds: tuple[str, ...]) -> dict[str, str]:
    """Contenders of a kind (how their names begin) that take long, and longer than the fastest of it: ratios are to
    that one, and the time is better spent on other cases. Name -> why."""
    slow = {}
    for kind in kinds:
        of_kind = {name: seconds for name, seconds in took.items() if name.startswith(kind)}
        fastest = min(of_kind, key=of_kind.__getitem__, default="")
        for name, seconds in of_kind.items():
            if seconds > max(PATIENCE, MUCH_SLOWER * took[fastest]):
                slow[name] = f"took {seconds:.1f} s, {fastest} {took[fastest]:.1f} s"
    return slow


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


# ---- the limit


def all_contenders(problem: Problem, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Those of a problem, and before them those that show how fast its work could be done."""
    limits: dict[str, Callable[[], Any]] = {}
    if problem.work.bytes:
        limits[COPY] = copy_of(problem.work, device)
    if problem.work.flops:
        limits[FMA] = fma_on(device)
    return {**limits, **problem.contenders}


def copy_of(work: Work, device: torch.device) -> Callable[[], None]:
    """Moves as many bytes, half of them read and half written: a copy, or a change of sign in place."""
    source = torch.randn(max(1, work.bytes // 8), device=device)
    target = source if work.in_place else torch.empty_like(source)

    def run() -> None:
        torch.neg(source, out=target) if work.in_place else target.copy_(source)

    return run


def fma_on(device: torch.device) -> Callable[[], None]:
    """A float32 product of two matrices of ``FMA_SIDE`` rows and columns."""
    a, b, product = (torch.randn(2 * (FMA_SIDE[device.type],), device=device) for _ in range(3))

    def run() -> None:
        torch.mm(a, b, out=product)

    return run


def limit_ms(copy_ms: float, flops: int, flops_per_ms: float) -> float:
    """The least time that a case can take: to move its bytes, or to do its operations, whichever is longer."""
    return max(copy_ms, flops / flops_per_ms)


# ---- checks


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
