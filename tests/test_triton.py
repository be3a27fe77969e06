"""The Triton backend against the reference: in Triton's interpreter, or on a GPU where there is one."""

import sys
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import pytest
import torch
from backends import GPU_DTYPES
from emulator import ON_THE_CPU_ONLY, WITHOUT_A_KERNEL
from opcases import BLOCKS, BUDGETS, CASES, RAW_CALLS, ROWS, Budget, Draw, OpCase, Rows, Shape, raw
from test_adamw_project import check_steps
from test_adamw_select import CASES as ACTIVE
from test_adamw_select import check_steps as check_select_steps
from test_bad_input import BAD_INPUTS
from test_ops import (
    INF,
    MATRICES_BY_HAND,
    NAN,
    ROWS_BY_HAND,
    assert_right,
    assert_same_bits,
    assert_within,
    both_dtypes,
    cotangent_of,
    every_case,
    run,
    strided,
    transposed,
    with_shapes,
)
from torch import Tensor

from sparsekern import CSR, Pattern, ops
from sparsekern._triton import IMPLEMENTATIONS
from sparsekern._triton.abs_topk import plan_rows
from sparsekern._triton.csr_linear import plan_linear
from sparsekern._triton.csr_sddmm import plan_sddmm
from sparsekern._triton.topk_project import plan_project
from sparsekern.ops import reference
from sparsekern.ops.backend import TRITON_OPS, overridden
from sparsekern.ops.status import NO_NAN
from sparsekern.ops.topk_project import topk_project_pattern_, topk_select

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = {case.name for case in CASES}
LINEAR = [case for case in CASES if "linear" in case.name or case.name == "csr_sddmm"]


@pytest.fixture(autouse=True)
def triton_backend() -> Iterator[None]:
    with overridden({**IMPLEMENTATIONS, **WITHOUT_A_KERNEL}, DEVICE), torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


def drawn(dtype: torch.dtype = torch.float32, index: torch.dtype = torch.int32) -> Draw:
    return Draw(dtype, index)


def tensor(data: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(data, dtype=dtype, device=DEVICE)


def is_quick(shape: Any) -> bool:
    """The interpreter takes some milliseconds per program, and a program has 16 rows of a weight."""
    if isinstance(shape, Shape):
        return prod(shape.lead) * max(shape.n, shape.k) <= 8_000 and shape.nnz <= 2_000
    return prod(shape.shape if isinstance(shape, Rows) else (shape.n, shape.k)) <= 5_000


SMALLER_BUDGETS = (
    Budget(40, 90, 1000),
    Budget(17, 40, 60, floor=2, axis=0),
    Budget(17, 40, 68, floor=4, axis=0),  # the floor takes the whole budget
    Budget(17, 40, 90, floor=2, axis=1),
)


def quick_shapes(case: OpCase) -> tuple[Any, ...]:
    """Those, and small ones for what the others would show."""
    smaller: tuple[Any, ...]
    if case.name == "abs_topk":
        smaller = (Rows((9, 257), 64),)
    elif case.name == "topk_project_":
        smaller = SMALLER_BUDGETS
    elif case.name.startswith("bsr_"):
        return BLOCKS  # small enough
    else:
        smaller = (Shape((17,), 33, 20, 33 * 20), Shape((270,), 20, 30, 100))  # full; several blocks of tokens
    return (*filter(is_quick, case.shapes), *smaller)


def few_shapes(case: OpCase) -> tuple[Any, ...]:
    if case.name == "abs_topk":
        return (*ROWS[1:5], Rows((9, 203), 31))
    if case.name == "topk_project_":
        return (*BUDGETS[1:4], *SMALLER_BUDGETS[1:])
    if case.name.startswith("bsr_"):
        return BLOCKS[:4]
    return (Shape((33,), 35, 70, 300), Shape((2, 3), 5, 70, 100), Shape((3,), 70, 5, 30), Shape((), 5, 7, 9))


# ---- every op


@with_shapes(CASES, quick_shapes)
def test_result_and_gradients(case: OpCase, shape: Any) -> None:
    draw = drawn()
    problem = case.build(shape, draw)
    assert_right(case, problem, cotangent_of(case, problem, draw))


@with_shapes(CASES, few_shapes)
def test_float64(case: OpCase, shape: Any) -> None:
    draw = drawn(torch.float64)
    problem = case.build(shape, draw)
    assert_right(case, problem, cotangent_of(case, problem, draw))


@with_shapes([case for case in CASES if f"{case}+bias" not in NAMES], lambda case: case.small[:1])
def test_numerical_gradients(case: OpCase, shape: Any) -> None:
    problem = case.build(shape, drawn(torch.float64))
    leaves = tuple(t.requires_grad_() for t in problem.inputs)
    assert torch.autograd.gradcheck(problem.op, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(problem.op, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=["bf16", "f16"])
@with_shapes(CASES, few_shapes)
def test_half_precision(case: OpCase, shape: Any, dtype: torch.dtype) -> None:
    draw = drawn(dtype)
    problem = case.build(shape, draw)
    half_ulps = 1 if DEVICE == "cuda" else 2  # the interpreter truncates where a GPU rounds
    assert_right(case, problem, cotangent_of(case, problem, draw), half_ulps=half_ulps)


@pytest.mark.parametrize("name", RAW_CALLS)
def test_raw_ops_agree_with_their_shape_functions(name: str) -> None:
    for op, args in RAW_CALLS[name](drawn()):
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


def test_every_raw_op_is_implemented() -> None:
    raw_ops = {op.name().partition("::")[2] for calls in RAW_CALLS.values() for op, _ in calls(Draw())}
    assert set(IMPLEMENTATIONS) == set(TRITON_OPS) == raw_ops - ON_THE_CPU_ONLY


@pytest.mark.parametrize("layout", [transposed, strided])
@every_case
def test_strides_do_not_matter(case: OpCase, layout: Callable[[Tensor], Tensor]) -> None:
    draw = drawn()
    problem = case.build(few_shapes(case)[0], draw)
    cotangent = cotangent_of(case, problem, draw)
    assert_right(case, problem, None if cotangent is None else layout(cotangent), layout)


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith(("bsr_", "csr_"))], ids=str)
def test_wide_indices(case: OpCase) -> None:
    shape = few_shapes(case)[0]
    assert_same_bits(run(case, shape, drawn(index=torch.int64)), run(case, shape, drawn()))


# ---- the linear ops


def hub(n: int, k: int) -> CSR:
    """One row and one column are full, the others have two nonzeros."""
    weight = drawn().normal(n, k)
    mask = torch.zeros(n, k, dtype=torch.bool, device=DEVICE)
    mask[n // 2] = True
    mask[:, k // 3] = True
    mask[torch.arange(n), torch.arange(n) % k] = True
    return CSR.from_dense(torch.where(mask, weight, 0), nnz=int(mask.sum()))


def test_linear_with_rows_much_longer_than_the_others() -> None:
    draw, w = drawn(), hub(61, 150)
    x, g, bias = draw.normal(33, 150), draw.normal(33, 61), draw.normal(61)
    assert plan_linear(61, w.nnz, 33, torch.float32).even < 150
    assert plan_linear(150, w.nnz, 33, torch.float32).even < 61
    dense = reference.to_dense(w.to(dtype=torch.float64))
    y = ops.csr_linear(x, w, bias)
    assert_within(y, x.double() @ dense.T + bias, x.double().abs() @ dense.abs().T + bias.abs(), 4)
    dx = raw.csr_linear(g, w.values, *w.pattern.tensors, None, True)
    assert_within(dx, g.double() @ dense, g.double().abs() @ dense.abs(), 4)


def test_linear_of_many_features() -> None:
    draw = drawn()
    w, x, g = draw.csr(20, 40000, 300), draw.normal(5, 40000), draw.normal(5, 20)
    dense = reference.to_dense(w.to(dtype=torch.float64))
    assert_within(ops.csr_linear(x, w), x.double() @ dense.T, x.double().abs() @ dense.abs().T, 4)
    expected, scale = (reference.csr_sddmm(f(g), f(x), w) for f in (Tensor.double, lambda t: t.double().abs()))
    assert_within(ops.csr_sddmm(g, x, w), expected, scale, 4)


def test_linear_token_does_not_see_the_others() -> None:
    draw, w = drawn(), hub(35, 70)
    x = draw.normal(130, 70)
    x[7], x[20, 3] = NAN, INF
    y = ops.csr_linear(x, w)
    for begin, end in ((0, 1), (3, 7), (8, 20), (129, 130)):
        assert y[begin:end].isfinite().all()
        assert_same_bits([ops.csr_linear(x[begin:end], w)], [y[begin:end]])


def test_sddmm_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[plan_sddmm.__module__], "_CACHE", 1)
    assert plan_sddmm(5, 7, 1100, torch.float32).slice_tokens == 512
    draw = drawn()
    w, a, b = draw.csr(5, 7, 20), draw.normal(1100, 5), draw.normal(1100, 7)
    expected, scale = (reference.csr_sddmm(f(a), f(b), w) for f in (Tensor.double, lambda t: t.double().abs()))
    assert_within(ops.csr_sddmm(a, b, w), expected, scale, 4)


# ---- patterns and embeddings


@pytest.mark.parametrize("shape", [(5, 70, 100), (70, 5, 30), (4, 6, 0), (0, 7, 0), (7, 0, 0)], ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
def test_transpose_of_a_pattern(shape: tuple[int, int, int], index: torch.dtype) -> None:
    w = drawn(index=index).csr(*shape)
    across = w.transpose()
    raw.csr_validate(across.crow_indices.cpu(), across.col_indices.cpu(), shape[0])
    assert torch.equal(reference.to_dense(across), reference.to_dense(w).T)
    assert {t.dtype for t in w.pattern.tensors} == {index}


def test_embedding_of_strided_ids() -> None:
    draw = drawn()
    w, ids = draw.csr(57, 70, 500), draw.ids((3, 33), 57)
    for view in (ids.T, ids[:, ::2], ids[0, :1].expand(9)):
        assert torch.equal(ops.csr_embedding(view, w), reference.to_dense(w)[view])


# ---- selections


@both_dtypes
@pytest.mark.parametrize(("x", "k", "kept"), ROWS_BY_HAND)
def test_abs_topk_of_a_row(x: list[float], k: int, kept: list[float], dtype: torch.dtype) -> None:
    y = ops.abs_topk(tensor(x, dtype), k)
    torch.testing.assert_close(y, tensor(kept, dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("k", [1, 31, 128, 200])
def test_abs_topk_keeps_exactly_k_of_many_ties(k: int) -> None:
    x = torch.randint(1, 4, (9, 203), generator=torch.Generator().manual_seed(0), device="cpu").float().to(DEVICE)
    y = ops.abs_topk(x, k)
    assert (y != 0).sum(1).tolist() == [k] * 9
    assert torch.equal(y, reference.abs_topk(x, k))


def test_abs_topk_gradient_passes_kept_zeros() -> None:
    x = tensor([0.0, -0.0, 3, 0, 0, 0, 0, 0, 0]).requires_grad_()
    y = ops.abs_topk(x, 3)
    y.sum().backward()
    assert y.detach().signbit().tolist() == [False, True] + 7 * [False]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.fixture
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs hold rows of 1024 entries, so that longer ones need not be long."""
    monkeypatch.setattr(sys.modules[plan_rows.__module__], "_MAX_WARPS", 1)


@pytest.mark.usefixtures("small_programs")
@pytest.mark.parametrize("k", [1, 1100, 2499])
def test_abs_topk_of_rows_longer_than_a_program_holds(k: int) -> None:
    assert plan_rows(2500, torch.float32).wide
    x = drawn().normal(2, 2500).mul(20).round()  # many ties
    x[1, 1700] = NAN
    y, kept = raw.abs_topk(x, k)
    assert_same_bits([y], [reference.abs_topk(x, k)])
    bits = (kept[..., None] >> torch.arange(8, dtype=torch.uint8, device=DEVICE)) & 1
    assert torch.equal(bits.flatten(1)[:, :2500].bool(), reference.topk_mask(x.abs(), k))


def assert_projects(w: Tensor, rule: tuple[int, int, int | None]) -> None:
    """Exactly the entries that the reference keeps, in place and as a pattern."""
    projected = w.clone()
    crow, col = topk_project_pattern_(projected, *rule)
    assert_same_bits([projected], [reference.topk_project_(w.clone(), *rule)])
    raw.csr_validate(crow.cpu(), col.cpu(), w.shape[1])
    assert col.shape[0] == rule[0]
    kept = torch.zeros_like(w)
    kept[reference.row_indices(Pattern.build(crow, col, (w.shape[0], w.shape[1]))), col.long()] = 1
    assert_same_bits([projected], [torch.where(kept != 0, w, 0)])
    before = w.clone()
    for selected, indices in zip(topk_select(w, *rule), (crow, col), strict=True):
        assert torch.equal(selected, indices)
    assert_same_bits([w], [before])


@pytest.mark.parametrize("shape", [shape for shape in BUDGETS if is_quick(shape)] + [*SMALLER_BUDGETS], ids=str)
def test_project_returns_the_kept_positions(shape: Budget) -> None:
    w = torch.randint(-3, 4, (shape.n, shape.k), generator=torch.Generator().manual_seed(0), device="cpu").float()
    assert_projects(w.to(DEVICE), (shape.keep, shape.floor, shape.axis))


@pytest.mark.usefixtures("small_programs")
def test_project_long_rows() -> None:
    """Several tiles per row, neurons longer than a program holds."""
    assert_projects(drawn().normal(3, 2500).mul(20).round(), (4000, 1000, 0))


@pytest.mark.parametrize(("w", "rule", "kept"), MATRICES_BY_HAND)
def test_project_by_hand(w: list[list[float]], rule: tuple[int, ...], kept: list[list[float]]) -> None:
    weight = tensor(w)
    assert ops.topk_project_(weight, *rule) is weight
    assert torch.equal(weight, tensor(kept))


@pytest.mark.parametrize(("magnitudes", "keep"), [(1, 400), (3, 100), (50, 700)])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_project_of_all_scales(axis: int | None, magnitudes: int, keep: int) -> None:
    draw = drawn()
    w = draw.normal(23, 31).mul(magnitudes).round()
    w *= torch.tensor(2.0) ** torch.randint(-140, 120, (23, 31), generator=draw.generator, device="cpu").to(DEVICE)
    w[3], w[5, 5] = 0, INF
    assert_projects(w, (keep, 0 if axis is None else 3, axis))


def test_project_reports_nan() -> None:
    w = torch.ones(5, 7)
    assert raw.topk_project_(w.clone(), 9, 0, 0)[2].item() == NO_NAN
    w[2, 3] = w[4, 1] = NAN
    assert raw.topk_project_(w, 9, 0, 0)[2].item() == 17
    assert raw.topk_select(w[:0].contiguous(), 0, 0, 0)[2].item() == NO_NAN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_adamw_project(dtype: torch.dtype) -> None:
    check_steps((*BUDGETS[1:6], *SMALLER_BUDGETS[1:]), dtype, 2, torch.int64 if dtype == torch.float64 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_adamw_select(dtype: torch.dtype) -> None:
    quick = tuple(case for case in ACTIVE if case.active <= 9000)
    check_select_steps(quick, dtype, 2, torch.int64 if dtype == torch.float64 else torch.int32)


def test_project_keeps_nan() -> None:
    w = tensor([[1.0, NAN, INF], [NAN, 5, NAN]])
    assert_same_bits([ops.topk_project_(w.clone(), 4)], [tensor([[0, NAN, INF], [NAN, 0, NAN]])])
    assert_same_bits([ops.topk_project_(w.clone(), 2)], [tensor([[0, NAN, 0], [NAN, 0, 0]])])
    assert_same_bits([ops.topk_project_(w.clone(), 2, 1, 0)], [tensor([[0, NAN, 0], [NAN, 0, 0]])])


def test_all_nans_are_the_same_magnitude() -> None:
    x = torch.tensor([0x7F800000, 0x7F800001, -1, 0x7FC00000], dtype=torch.int32, device=DEVICE).view(torch.float32)
    kept = x.view(torch.int32) * tensor([0, 1, 1, 0], torch.int32)
    assert torch.equal(ops.abs_topk(x, 2).view(torch.int32), kept)
    assert torch.equal(ops.topk_project_(x.clone()[None], 2).view(torch.int32), kept[None])


# ---- arguments

CPU_ONLY = {"embedding-high", "embedding-low"}  # ids on a GPU are checked by the kernel that reads them
SHARED_BAD_INPUTS = [case for case in BAD_INPUTS if case[0] not in CPU_ONLY and "half" not in case[0]]

W = CSR.from_dense(torch.ones(5, 7), nnz=9).to(DEVICE)
X = torch.ones(3, 7, device=DEVICE)
G = torch.ones(3, 5, device=DEVICE)
FLOATS = "must be float32, bfloat16, float16 or float64"


@pytest.mark.parametrize(("call", "message"), [pytest.param(*rest, id=name) for name, *rest in SHARED_BAD_INPUTS])
def test_bad_input_is_named_as_on_the_cpu(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: ops.csr_linear(X.int(), W), f"csr_linear: x {FLOATS}, got scalar type Int", id="linear"),
        pytest.param(
            lambda: ops.csr_linear(X.half(), W.to(dtype=torch.float16)),
            "csr_linear: values must have scalar type Float, got Half",
            id="linear-half",
        ),
        pytest.param(lambda: ops.csr_sddmm(G.int(), X.int(), W), f"csr_sddmm: a {FLOATS}", id="sddmm"),
        pytest.param(
            lambda: ops.csr_sddmm(G.half(), X.bfloat16(), W),
            "csr_sddmm: a and b must have the same dtype, got Half and BFloat16",
            id="sddmm-dtypes",
        ),
        pytest.param(lambda: ops.abs_topk(X.int(), 1), f"abs_topk: x {FLOATS}", id="abs-topk"),
        pytest.param(
            lambda: raw.abs_topk_backward(X, torch.zeros(3, 2, dtype=torch.uint8, device=DEVICE)),
            r"abs_topk_backward: kept must hold one bit .* got shape \(3, 2\)",
            id="abs-topk-kept",
        ),
        pytest.param(lambda: ops.topk_project_(X.int(), 1), f"topk_project_: weight {FLOATS}", id="project"),
        pytest.param(
            lambda: raw.topk_project_(X.T, 1, 0, 0),
            r"topk_project_: weight must be a contiguous matrix, got shape \(7, 3\)",
            id="project-strides",
        ),
        pytest.param(
            lambda: raw.csr_linear(X, W.values, *(t.short() for t in W.pattern.tensors), None, False),
            "csr_linear: crow_indices must be int32 or int64",
            id="indices",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()


# ---- plans


def test_plans_follow_from_shapes() -> None:
    density = 8192 * 2048 // 1000
    assert str(plan_linear(8192, density, 2048, torch.bfloat16)) == (
        "LinearPlan(block_n=16, block_t=256, even=16, unroll=2, num_warps=8)"
    )
    assert plan_linear(2048, density, 1, torch.float32).block_t == 16
    assert str(plan_sddmm(8192, 2048, 16384, torch.bfloat16)) == (
        "SddmmPlan(block_p=16, block_t=256, slice_tokens=1024, num_warps=8)"
    )
    assert str(plan_rows(8192, torch.bfloat16)) == (
        "RowPlan(block_r=1, block_w=8192, chunk=2048, wide=False, num_warps=8)"
    )
    assert str(plan_project(8192, 2048)) == "ProjectPlan(block_r=1, block_c=2048, num_warps=8)"
