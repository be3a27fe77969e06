"""Every case of the GPU benchmarks, small and on the CPU: right contenders are timed, wrong ones are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern.bench.cases import BUILDERS, GROUPS, cases_of
from sparsekern.bench.measure import Case, Problem, assert_close, measure
from sparsekern.ops.backend import overridden

CPU = torch.device("cpu")
TINY = list(dict.fromkeys(case for group in GROUPS for case in cases_of(group, tiny=True)))
raw = torch.ops.sparsekern

every_case = pytest.mark.parametrize("case", TINY, ids=str)


def run(case: Case) -> tuple[set[str], dict[str, str], str]:
    timings, failed, baseline = measure(BUILDERS[case.op], case, CPU, rounds=1)
    return set(timings), failed, baseline


@every_case
def test_every_contender_is_right(case: Case) -> None:
    timed, failed, baseline = run(case)
    assert failed == {}
    assert "sparsekern cpu" in timed
    assert len(timed) >= 2
    assert baseline in timed or (baseline == "torch.sparse f32" and case.density > 0.02)
    assert ("torch.sparse f32" in timed) == (case.op.startswith("csr_linear") and case.density <= 0.02)


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
    "csr_linear forward and backward": ("csr_sddmm", lambda a, b, crow, col, *_: a.new_ones(col.numel())),
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

    timings, failed, _ = measure(problem_of(skips=skips_one, writes=writes_all), TINY[0], CPU, rounds=1)
    assert (set(timings), failed) == ({"writes"}, {"skips": "not finite"})


def test_a_rival_that_cannot_run_is_left_out() -> None:
    def too_large() -> Tensor:
        raise torch.OutOfMemoryError("out of memory\nand more")

    timings, failed, _ = measure(problem_of(a=lambda: torch.ones(2), b=too_large), TINY[0], CPU, rounds=1)
    assert (set(timings), failed) == ({"a"}, {"b": "out of memory"})


def test_nothing_goes_on_after_an_error_of_the_gpu() -> None:
    def broken() -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(problem_of(a=broken), TINY[0], CPU, rounds=1)


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
