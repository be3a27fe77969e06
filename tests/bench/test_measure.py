"""Every case of the benchmarks, small and on the CPU: right contenders are timed, wrong ones are not."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern.bench.cases import BLOCKS, BUILDERS, GROUPS, PER_WEIGHT, cases_of, cpu, quick
from sparsekern.bench.measure import COPY, FMA, Case, Problem, Work, all_contenders, assert_close, measure, outpaced
from sparsekern.ops.backend import overridden

CPU = torch.device("cpu")
TINY = list(dict.fromkeys(case for group in GROUPS for case in cases_of(group, tiny=True)))
raw = torch.ops.sparsekern

every_case = pytest.mark.parametrize("case", TINY, ids=str)


def run(case: Case) -> tuple[set[str], dict[str, str], str]:
    measured = measure(BUILDERS[case.op], case, CPU, rounds=1)
    assert set(measured.timings) == {"kernel", "cold", "op"}
    assert all(set(timings) == measured.timed for timings in measured.timings.values())
    return measured.timed, dict(measured.failed), measured.baseline


@every_case
def test_every_contender_is_right(case: Case) -> None:
    timed, failed, baseline = run(case)
    assert failed == {}
    assert "sparsekern cpu" in timed
    assert len(timed) >= 2
    compared = any(name.startswith(baseline) for name in timed)
    assert compared or (baseline == "torch.sparse" and case.density > 0.1)
    if case.op in (*PER_WEIGHT, *BLOCKS) and case.op != "CSR.from_dense":
        assert {"copy", "fma", "dense f32", "dense bf16"} <= timed
    if case.op == "csr_linear":
        sparse = {"torch.sparse CSR f32", "torch.sparse CSR f32, (w @ x.T).T"} if case.density <= 0.1 else set()
        orientation = {"torch.sparse BSR f32", "scipy CSR f32"} if case.density <= 0.01 else set()
        assert {name for name in timed if name.startswith(("torch", "scipy"))} == sparse | orientation


def test_every_op_has_a_case() -> None:
    assert {case.op for case in TINY} == set(BUILDERS)
    for group, cases in GROUPS.items():
        assert {case.op for case in cases_of(group, tiny=True)} == {case.op for case in cases()}
        assert len(set(cases())) == len(cases())


def small_rows(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """abs_topk that keeps the smallest."""
    kept = x.abs().topk(k, largest=False).indices
    return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept)), raw.abs_topk(x, k)[1]


def first_entries(weight: Tensor, k: int, floor: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """topk_project_ that keeps the first."""
    weight.view(-1)[k:] = 0
    return raw.topk_select(weight, k, floor, axis)


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "csr_linear": ("csr_linear", lambda x, values, *rest: x.new_ones(len(x), rest[0].numel() - 1)),
    "csr_linear forward and backward": (
        "csr_linear_backward",
        lambda grad, x, values, *_: (x.clone(), values.clone()),
    ),
    "csr_sddmm": ("csr_sddmm", lambda a, b, crow, col, *_: a.new_ones(col.numel())),
    **{
        op: ("bsr_sddmm", lambda a, b, crow, col, *rest: a.new_ones(col.numel(), *rest[-2:]))
        if op.endswith("backward")
        else ("bsr_linear", lambda x, values, *rest: x.new_ones(len(x), rest[-2]))
        for op in BLOCKS
    },
    "SparseLinear": ("csr_linear", lambda x, values, *rest: x.new_ones(len(x), rest[0].numel() - 1)),
    "CSR.from_dense": ("topk_select", lambda weight, *k: raw.topk_project_(torch.ones_like(weight), *k)),
    "causal_attention": ("causal_attention", lambda q, k, v, sink: (v.clone(), q.new_ones(q.shape[:3]))),
    "causal_attention forward and backward": (
        "causal_attention_backward",
        lambda grad, q, k, v, *_: (q.clone(), k.clone(), v.clone(), q.new_ones(0, q.shape[2])),
    ),
    "abs_topk": ("abs_topk", small_rows),
    "abs_topk_backward": ("abs_topk_backward", lambda grad, kept: grad.clone()),
    "csr_embedding": ("csr_embedding", lambda ids, values, crow, col, cols: values.new_zeros(*ids.shape, cols)),
    "csr_embedding_backward": ("csr_embedding_backward", lambda grad, ids, crow, col: grad.new_ones(col.numel())),
    "topk_project_": ("topk_project_", first_entries),
    "adamw_project_": ("adamw_project_", lambda weights, *rest: torch.full((len(weights),), 2**63 - 1)),
    "adamw_select_": ("adamw_select_", lambda weights, *rest: torch.full((len(weights),), 2**63 - 1)),
    "sparse training step": (
        "csr_linear",
        lambda x, values, *rest: 9 * x.new_ones(*x.shape[:-1], rest[0].numel() - 1),
    ),
    "training step": ("csr_linear", lambda x, values, *rest: 9 * x.new_ones(*x.shape[:-1], rest[0].numel() - 1)),
}


@pytest.mark.parametrize("op", BUILDERS)
def test_a_wrong_kernel_gets_no_time(op: str) -> None:
    case = next(case for case in TINY if case.op == op)
    name, wrong = WRONG[op]
    with overridden({name: wrong}, "cpu"):
        timed, failed, _ = run(case)
    assert set(failed) == {"sparsekern cpu"}
    assert "sparsekern cpu" not in timed
    assert timed


def problem_of(**contenders: Callable[[], Any]) -> Callable[[Case, torch.device], Problem]:
    def check(result: Tensor) -> None:
        assert result.isfinite().all(), "not finite"

    return lambda case, device: Problem(contenders, check, baseline="a")


def test_an_element_that_is_not_written_is_found() -> None:
    reused = torch.ones(8)  # the memory of every result

    def skips_one() -> Tensor:
        reused[:-1] = 1
        return reused

    def writes_all() -> Tensor:
        return reused.fill_(1)

    measured = measure(problem_of(skips=skips_one, writes=writes_all), TINY[0], CPU, rounds=1)
    assert (measured.timed, measured.failed) == ({"writes"}, {"skips": "not finite"})


def test_a_rival_that_cannot_run_is_left_out() -> None:
    def too_large() -> Tensor:
        raise torch.OutOfMemoryError("out of memory\nand more")

    measured = measure(problem_of(a=lambda: torch.ones(2), b=too_large), TINY[0], CPU, rounds=1)
    assert (measured.timed, measured.failed) == ({"a"}, {"b": "out of memory"})


def test_nothing_goes_on_after_an_error_of_the_gpu() -> None:
    def broken() -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(problem_of(a=broken), TINY[0], CPU, rounds=1)


def test_without_scipy_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for op in ("csr_linear", "CSR.from_dense"):
        timed, failed, _ = run(Case(op, "f32", 40, 64, 48, 0.01))
        assert failed == {}
        assert "torch.sparse BSR" in {name.removesuffix(" f32") for name in timed}
        assert not any(name.startswith("scipy") for name in timed)


def limits(work: Work) -> dict[str, Callable[[], Any]]:
    return all_contenders(Problem({}, lambda _: None, "", work=work), CPU)


def test_limits_do_the_work_of_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, multiplied = [], []
    monkeypatch.setattr(Tensor, "copy_", lambda self, source: copied.append((self.nbytes, source.nbytes)))
    monkeypatch.setattr(torch, "neg", lambda source, out: copied.append((out.nbytes, out is source)))
    monkeypatch.setattr(torch, "mm", lambda a, b, out: multiplied.append(a.shape[0] * a.shape[1] * b.shape[1]))
    assert limits(Work()) == {}
    assert list(limits(Work(bytes=8000))) == [COPY]
    limits(Work(bytes=8000))[COPY]()
    limits(Work(bytes=8000, in_place=True))[COPY]()
    assert copied == [(4000, 4000), (4000, True)]
    limits(Work(bytes=8000, flops=1))[FMA]()
    fma = measure(problem_of(a=lambda: torch.ones(2)), TINY[0], CPU, rounds=1).fma_work
    assert fma == Work(flops=2 * multiplied[0])


def test_quick_is_small_and_apart() -> None:
    cases = quick()
    assert len(cases) == len(set(cases)) <= 20
    assert not set(cases) & set(cpu())  # its rows, of fewer rounds, must not stand for those of a whole run
    assert {case.op for case in cases} >= {"csr_linear", "csr_sddmm", "SparseLinear", "causal_attention", "abs_topk"}
    assert max(case.tokens * case.n * case.k for case in cases if case.op in PER_WEIGHT) <= 2**30
    assert {case.dtype for case in cases} == {"f32"}


def test_the_cpu_cases_are_what_was_published() -> None:
    of = [case for case in cpu() if case.op == "csr_linear forward and backward"]
    shapes = {(2048, 6144), (2048, 8192), (8192, 2048), (1024, 4096), (4096, 4096), (4096, 16384)}
    assert {(case.k, case.n) for case in of} == shapes
    assert (min(case.tokens for case in of), max(case.tokens for case in of)) == (1, 16384)
    assert (min(case.density for case in of), max(case.density for case in of)) == (0.001, 0.5)


def test_of_slow_contenders_of_a_kind_only_the_fastest_is_timed() -> None:
    took = {"dense f32": 2.0, "dense bf16": 4.0, "torch.sparse a": 0.1, "torch.sparse b": 0.9, "sparsekern cpu": 9.0}
    assert outpaced(took, ("dense", "torch.sparse", "none")) == {"dense bf16": "took 4.0 s, dense f32 2.0 s"}
    assert outpaced({**took, "dense bf16": 2.9}, ("dense",)) == {}


def test_what_is_outpaced_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsekern.bench.measure.PATIENCE", 0.02)
    contenders = {"a slow": lambda: time.sleep(0.05), "a fast": lambda: None, "sparsekern": lambda: time.sleep(0.05)}
    measured = measure(problem_of(**contenders), TINY[0], CPU, rounds=1)
    assert measured.timed == {"a fast", "sparsekern"}
    assert measured.failed == {"a slow": "took 0.1 s, a fast 0.0 s"}
    assert measured.wrong == {}


def test_assert_close_is_relative_to_the_norm() -> None:
    expected = torch.randn(1000, dtype=torch.float64)
    for dtype, error in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        assert_close((expected * (1 + error / 2)).to(dtype), expected)
        with pytest.raises(AssertionError, match="wrong by"):
            assert_close((expected * (1 + error * 2)).to(dtype), expected)
    with pytest.raises(AssertionError, match="wrong by"):
        assert_close(torch.full((1000,), torch.nan), expected)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(expected[:1], expected)
