"""Every op against its reference in float64, on every backend; see ``opcases.py``."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from backends import GPU_DTYPES, running
from opcases import BUDGETS, CASES, RAW_CALLS, Budget, Draw, OpCase, Problem, Shape, active_pattern, raw, value_dtype
from torch import Tensor

from sparsekern import CSR, Pattern, ops
from sparsekern.ops import reference
from sparsekern.ops.status import NO_NAN
from sparsekern.ops.topk_project import topk_project_pattern_, topk_select

INF, NAN = torch.inf, torch.nan
Layout = Callable[[Tensor], Tensor]
DIFFERENTIABLE = [case for case in CASES if case.small]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_differentiable_case = pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)


def with_shapes(cases: Iterable[OpCase], shapes: Callable[[OpCase], tuple[Any, ...]]) -> pytest.MarkDecorator:
    pairs = [pytest.param(case, shape, id=f"{case}-{shape}") for case in cases for shape in shapes(case)]
    return pytest.mark.parametrize(("case", "shape"), pairs)


every_shape = with_shapes(CASES, lambda case: case.shapes)
# without csr_linear_dense_grad: it adds to csr_linear only a matmul, which torch cuts by the number of threads
every_kernel_shape = with_shapes([c for c in CASES if "dense_grad" not in c.name], lambda case: case.shapes)
every_small_shape = with_shapes(CASES, lambda case: case.small)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
cpu_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"]
)


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    """Quick also on a busy machine; test_threads_do_not_matter shows that more threads compute the same."""
    set_threads(1)


def outcome(fn: Callable[..., Tensor], inputs: tuple[Tensor, ...], cotangent: Tensor | None) -> list[Tensor]:
    """The result, then (where there is a cotangent) the gradients of all inputs."""
    if cotangent is None:
        return [fn(*inputs)]
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = fn(*leaves)
    gradients = torch.autograd.grad(y, leaves, cotangent)
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
    return [y.detach(), *gradients]


def cotangent_of(case: OpCase, problem: Problem, draw: Draw) -> Tensor | None:
    if not case.small:
        return None
    y = problem.op(*problem.inputs)
    return replace(draw, dtype=y.dtype).normal(*y.shape)


def run(case: OpCase, shape: Any, draw: Draw) -> list[Tensor]:
    problem = case.build(shape, draw)
    return outcome(problem.op, problem.inputs, cotangent_of(case, problem, draw))


def assert_within(actual: Tensor, expected: Tensor, scale: Tensor, rounding: float, half_ulps: int = 1) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs()
    bound = rounding * torch.finfo(value_dtype(actual.dtype)).eps * scale
    if actual.dtype in GPU_DTYPES and rounding:  # summed in float32, then rounded to the nearest (half an ulp)
        info = torch.finfo(actual.dtype)
        bound = bound + half_ulps * info.eps / 2 * (expected.abs() + bound) + info.tiny
    assert (error <= bound).all(), f"off by {error.max()}"


def assert_right(
    case: OpCase, problem: Problem, cotangent: Tensor | None, layout: Layout = Tensor.clone, half_ulps: int = 1
) -> None:
    """Result and gradients are those of the reference in float64, whatever the strides of the op's inputs."""
    actual = outcome(problem.op, tuple(map(layout, problem.inputs)), cotangent)
    inputs = tuple(t.double() for t in problem.inputs)
    cotangent = None if cotangent is None else cotangent.double()
    expected = outcome(problem.reference, inputs, cotangent)
    # the ops that round are multilinear: on absolute values they give the sums of absolute products
    absolute = tuple(t.abs() for t in inputs)
    scale = outcome(problem.reference, absolute, None if cotangent is None else cotangent.abs())
    rounding = case.rounding
    narrow = problem.inputs[0].dtype
    if case.rounds_values and narrow in GPU_DTYPES:  # to an ulp, not to half of one, by Triton's interpreter
        rounding += 1.01 * torch.finfo(narrow).eps / torch.finfo(torch.float32).eps
        half_ulps = 2
    for a, e, s in zip(actual, expected, scale, strict=True):
        assert_within(a, e, s, rounding, half_ulps)


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
        assert torch.equal(a.contiguous().view(bits), e.contiguous().view(bits))


# ---- every op


@both_dtypes
@every_shape
def test_result_and_gradients(case: OpCase, shape: Any, dtype: torch.dtype, backend: str) -> None:
    draw = Draw(dtype)
    problem = case.build(shape, draw)
    assert_right(case, problem, cotangent_of(case, problem, draw))


@every_shape
def test_bfloat16(case: OpCase, shape: Any, backend: str) -> None:
    draw = Draw(torch.bfloat16)
    problem = case.build(shape, draw)
    assert_right(case, problem, cotangent_of(case, problem, draw))


@every_shape
def test_float16(case: OpCase, shape: Any, gpu_backend: str) -> None:
    draw = Draw(torch.float16)
    problem = case.build(shape, draw)
    assert_right(case, problem, cotangent_of(case, problem, draw))


@every_small_shape
def test_numerical_gradients(case: OpCase, shape: Any, backend: str) -> None:
    problem = case.build(shape, Draw())
    leaves = tuple(t.requires_grad_() for t in problem.inputs)
    is_large = problem.op(*leaves).numel() + sum(map(Tensor.numel, leaves)) > 100
    # where it is, in a random direction instead of along every axis
    assert torch.autograd.gradcheck(problem.op, leaves, fast_mode=is_large)
    assert torch.autograd.gradgradcheck(problem.op, leaves, fast_mode=is_large)


@pytest.mark.parametrize("name", RAW_CALLS)
def test_raw_ops_are_registered_right(name: str) -> None:
    for op, args in RAW_CALLS[name](Draw(torch.float32)):
        torch.library.opcheck(op, args)


def test_every_raw_op_has_a_case() -> None:
    checked = {op.name() for calls in RAW_CALLS.values() for op, _ in calls(Draw())}
    assert checked == {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sparsekern::")}


@every_differentiable_case
def test_compiled_equals_eager(case: OpCase) -> None:
    draw = Draw(torch.float32)
    problem = case.build(case.shapes[0], draw)
    cotangent = cotangent_of(case, problem, draw)
    torch._dynamo.reset()
    compiled = torch.compile(problem.op, fullgraph=True, backend="aot_eager", dynamic=True)
    assert_same_bits(outcome(compiled, problem.inputs, cotangent), outcome(problem.op, problem.inputs, cotangent))


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2] if x.dim() > 1 else x


@pytest.mark.parametrize("layout", [transposed, strided])
@every_case
def test_strides_do_not_matter(case: OpCase, layout: Layout, backend: str) -> None:
    draw = Draw(torch.float32)
    problem = case.build(case.shapes[0], draw)
    cotangent = cotangent_of(case, problem, draw)
    assert_right(case, problem, None if cotangent is None else layout(cotangent), layout)


@every_differentiable_case
def test_expanded_gradient(case: OpCase, backend: str) -> None:
    problem = case.build(case.shapes[0], Draw(torch.float32))
    assert_right(case, problem, torch.ones(()).expand(problem.op(*problem.inputs).shape))


@cpu_dtypes
@every_kernel_shape
def test_threads_do_not_matter(
    case: OpCase, shape: Any, dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    set_threads(1)
    alone = run(case, shape, Draw(dtype))
    for threads in (1, 2, 3):
        set_threads(threads)
        assert_same_bits(run(case, shape, Draw(dtype)), alone)


@every_case
def test_thread_order_does_not_matter(case: OpCase, gpu_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for seed in "012":  # of the emulator's scheduler; a GPU has an order of its own every time
        monkeypatch.setenv("SPARSEKERN_EMU_SEED", seed)
        results.append(run(case, case.shapes[0], Draw(torch.float32)))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("csr_")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_wide_indices(case: OpCase, dtype: torch.dtype, backend: str) -> None:
    narrow = run(case, case.shapes[0], Draw(dtype))
    assert_same_bits(run(case, case.shapes[0], Draw(dtype, index=torch.int64)), narrow)


# ---- the linear ops


@cpu_dtypes
def test_linear_token_does_not_see_the_others(dtype: torch.dtype, backend: str) -> None:
    draw = Draw(dtype)
    w, x, bias = draw.csr(70, 257, 900), draw.normal(130, 257), draw.weight(70)
    y = ops.csr_linear(x, w, bias)
    for begin, end in ((0, 1), (5, 6), (7, 40), (3, 130), (129, 130)):
        assert_same_bits([ops.csr_linear(x[begin:end], w, bias)], [y[begin:end]])
    order = torch.randperm(130, generator=draw.generator)
    assert_same_bits([ops.csr_linear(x[order], w, bias)], [y[order]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_linear_with_large_results(dtype: torch.dtype, isa: str) -> None:
    """They are written past the caches."""
    draw, tokens, wide, narrow = Draw(dtype), 2050, 4160, 37
    up, down = draw.csr(wide, narrow, 9000), draw.csr(narrow, wide, 9000)
    x, grad = draw.normal(tokens, narrow), draw.normal(tokens, narrow)
    y = ops.csr_linear(x, up)
    assert y.nbytes >= 16 << 20
    dx, dvalues = raw.csr_linear_backward(grad, torch.ones_like(y), down.values, *down.pattern.tensors)
    torch.testing.assert_close(y.float(), x.float() @ up.to_dense().T, rtol=8e-3, atol=1e-4)
    torch.testing.assert_close(dx.float(), grad.float() @ down.to_dense(), rtol=8e-3, atol=1e-4)
    torch.testing.assert_close(dvalues, grad.float().sum(0)[reference.row_indices(down.pattern)])


def test_linear_keeps_infinities_to_their_tokens(backend: str) -> None:
    w = CSR.from_dense(torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 2, 3]]), nnz=3)
    x = torch.tensor([[1.0, 1, 1], [INF, 1, 1], [1, 1, NAN]])
    expected = torch.tensor([[1.0, 0, 5], [INF, 0, 5], [1, 0, NAN]])
    assert torch.equal(ops.csr_linear(x, w).nan_to_num(7, 8), expected.nan_to_num(7, 8))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_linear_agrees_with_torch_csr() -> None:
    draw = Draw(torch.float32)
    w, x = draw.csr(70, 257, 900), draw.normal(33, 257)
    torch.testing.assert_close(ops.csr_linear(x, w), (w.to_torch() @ x.T).T)


def test_linear_of_an_expanded_token(backend: str) -> None:
    draw = Draw()
    w, x = draw.csr(70, 257, 900), draw.normal(1, 257)
    assert_same_bits([ops.csr_linear(x.expand(33, 257), w)], [ops.csr_linear(x, w).expand(33, 70)])


def test_linear_with_a_transposed_weight(backend: str) -> None:
    draw = Draw()
    w, g = draw.csr(5, 7, 9), draw.normal(3, 5).requires_grad_()
    values = w.values.requires_grad_()
    assert torch.autograd.gradcheck(lambda g, v: ops.csr_linear(g, CSR(v, w.pattern).transpose()), (g, values))
    torch.testing.assert_close(ops.csr_linear(g, w.transpose()), g @ reference.to_dense(w))


def test_linear_dense_grad_gives_the_master_the_dense_gradient(backend: str) -> None:
    draw = Draw()
    pattern = draw.csr(5, 7, 9).pattern
    x, g, master = draw.normal(2, 3, 7), draw.normal(2, 3, 5), draw.normal(5, 7).requires_grad_()
    ops.csr_linear_dense_grad(x, master, pattern).backward(g)
    torch.testing.assert_close(master.grad, g.view(6, 5).T @ x.view(6, 7))


def test_linear_dense_grad_numerically_off_the_pattern(backend: str) -> None:
    draw = Draw()
    pattern = draw.csr(4, 5, 9).pattern
    x, master, bias = draw.normal(3, 5).requires_grad_(), draw.normal(4, 5), draw.normal(4).requires_grad_()

    def op(x: Tensor, bias: Tensor) -> Tensor:
        return ops.csr_linear_dense_grad(x, master, pattern, bias)

    assert torch.autograd.gradcheck(op, (x, bias))
    assert torch.autograd.gradgradcheck(op, (x, bias))


def test_linear_active_gives_candidates_the_dense_gradient(backend: str) -> None:
    draw = Draw()
    pattern = active_pattern(Shape((2, 3), 5, 7, 14), draw)
    x, g, active = draw.normal(2, 3, 7), draw.normal(2, 3, 5), draw.normal(14).requires_grad_()
    ops.csr_linear_active(x, active, pattern).backward(g)
    dense = g.view(6, 5).T @ x.view(6, 7)
    torch.testing.assert_close(active.grad, dense.flatten()[pattern.flat_indices()])


def test_observe_measures_both_sides(backend: str) -> None:
    draw = Draw()
    x, w, g = draw.normal(2, 3, 7), draw.normal(5, 7).requires_grad_(), draw.normal(2, 3, 5)
    dy_squares, x_squares = (
        torch.zeros(5, dtype=w.dtype).requires_grad_(),
        torch.zeros(7, dtype=w.dtype).requires_grad_(),
    )
    for _ in range(2):  # they add up, as gradients do
        ops.observe(x @ w.T, x, dy_squares, x_squares).backward(g)
    torch.testing.assert_close(w.grad, 2 * g.view(6, 5).T @ x.view(6, 7))
    torch.testing.assert_close(dy_squares.grad, 2 * g.square().sum((0, 1)))
    torch.testing.assert_close(x_squares.grad, 2 * x.square().sum((0, 1)))
    ids, g = torch.tensor([[6, 0], [6, 6]]), draw.normal(2, 2, 5)
    (of_ids,) = torch.autograd.grad(ops.observe(w.T[ids], ids, dy_squares, x_squares), x_squares, g)
    expected = torch.zeros(7, dtype=w.dtype).index_add(0, ids.flatten(), g.square().sum(-1).flatten())
    torch.testing.assert_close(of_ids, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
def test_observe_measures_many_tokens(dtype: torch.dtype) -> None:
    """More than are squared at a time."""
    draw = Draw(dtype)
    x, y, g = draw.normal(3, 150, 900), draw.normal(3, 150, 2).requires_grad_(), draw.normal(3, 150, 2)
    squares = [torch.zeros(n, dtype=value_dtype(dtype)).requires_grad_() for n in (2, 900)]
    measured = torch.autograd.grad(ops.observe(y, x, *squares), squares, g)
    for squared, of in zip(measured, (g, x), strict=True):
        torch.testing.assert_close(squared, of.to(squared.dtype).square().sum((0, 1)))


# ---- csr_embedding


def test_embedding_of_strided_ids(backend: str) -> None:
    draw = Draw(torch.float32)
    w, ids = draw.csr(257, 70, 1500), draw.ids((3, 33), 257)
    for view in (ids.T, ids[:, ::2], ids[0, :1].expand(9)):
        assert torch.equal(ops.csr_embedding(view, w), reference.to_dense(w)[view])


@pytest.mark.parametrize("bad", [5, -1])
def test_embedding_stops_at_ids_out_of_range(bad: int) -> None:
    """On a GPU this ends the context, so it is tried on the emulated kernels only."""
    w = CSR.from_dense(torch.ones(5, 7), nnz=9)
    ids = torch.tensor([0, bad])
    with running("emulated"):
        with pytest.raises(RuntimeError, match="trap"):
            ops.csr_embedding(ids, w)
        with pytest.raises(RuntimeError, match="trap"):
            raw.csr_embedding_backward(torch.ones(2, 7), ids, w.crow_indices, w.col_indices)


# ---- abs_topk


ROWS_BY_HAND = [
    pytest.param([2.0, -2, 1, 2, -2, 2, 0, 2, -2, 2], 4, [2.0, -2, 0, 2, -2, 0, 0, 0, 0, 0], id="ties"),
    pytest.param([1.0, 5, -3, 3, 3], 2, [0.0, 5, -3, 0, 0], id="ties-at-the-cut"),
    pytest.param([0.0] * 9, 3, [0.0] * 9, id="zeros"),
    pytest.param([1.0, -INF, INF, -9, INF], 2, [0.0, -INF, INF, 0, 0], id="infinities"),
    pytest.param([INF, 1, NAN, -INF], 1, [0.0, 0, NAN, 0], id="nan-above-infinity"),
    pytest.param([NAN, 1, NAN, NAN, 2], 2, [NAN, 0, NAN, 0, 0], id="nan-ties"),
    pytest.param([NAN, 1, 2, 3], 2, [NAN, 0, 0, 3], id="nan-kept"),
    pytest.param([1.0, INF, NAN], 0, [0.0, 0, 0], id="none"),
    pytest.param([1.0, -INF, NAN], 3, [1.0, -INF, NAN], id="all"),
    pytest.param([1e-45, -3e-45, 0, 1e-45], 2, [1e-45, -3e-45, 0, 0], id="denormals"),
]


@both_dtypes
@pytest.mark.parametrize(("x", "k", "kept"), ROWS_BY_HAND)
def test_abs_topk_of_a_row(x: list[float], k: int, kept: list[float], dtype: torch.dtype, backend: str) -> None:
    y = ops.abs_topk(torch.tensor(x, dtype=dtype), k)
    torch.testing.assert_close(y, torch.tensor(kept, dtype=dtype), rtol=0, atol=0, equal_nan=True)


def test_abs_topk_gradient_passes_kept_zeros(backend: str) -> None:
    x = torch.tensor([0.0, -0.0, 3, 0, 0, 0, 0, 0, 0], requires_grad=True)
    y = ops.abs_topk(x, 3)
    y.sum().backward()
    assert y.detach().signbit().tolist() == [False, True] + 7 * [False]  # a kept -0.0 stays, what is dropped is +0.0
    assert torch.equal(x.grad, torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0, 0]))


@both_dtypes
@pytest.mark.parametrize("k", [1, 31, 128, 200])
def test_abs_topk_keeps_exactly_k_of_many_ties(k: int, dtype: torch.dtype, backend: str) -> None:
    x = torch.randint(1, 4, (9, 203), generator=torch.Generator().manual_seed(0)).to(dtype)
    y = ops.abs_topk(x, k)
    assert (y != 0).sum(1).tolist() == [k] * 9
    assert torch.equal(y, reference.abs_topk(x, k))


@both_dtypes
@pytest.mark.parametrize("k", [1, 50, 202])
@pytest.mark.parametrize("spread", [(64, 1), (64, 203)], ids=["rows", "entries"])
def test_abs_topk_of_all_scales(spread: tuple[int, int], k: int, dtype: torch.dtype, backend: str) -> None:
    draw = Draw(dtype)
    reach = 140 if dtype == torch.float32 else 1060  # from denormals and zeros to infinities
    exponents = torch.randint(-reach, reach, spread, generator=draw.generator)
    x = draw.normal(64, 203) * torch.tensor(2, dtype=dtype) ** exponents
    x[3], x[5], x[7] = 0, INF, NAN
    assert_same_bits([ops.abs_topk(x, k)], [reference.abs_topk(x, k)])


# ---- topk_project_


def tied_matrix(n: int, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Few different magnitudes, both signs, many zeros."""
    return torch.randint(-3, 4, (n, k), generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("shape", BUDGETS, ids=str)
@both_dtypes
def test_project_returns_the_kept_positions(shape: Budget, dtype: torch.dtype, backend: str) -> None:
    w = tied_matrix(shape.n, shape.k, dtype)
    rule = (shape.keep, shape.floor, shape.axis)
    projected = w.clone()
    crow, col = topk_project_pattern_(projected, *rule)
    raw.csr_validate(crow.cpu(), col.cpu(), shape.k)
    kept = torch.zeros_like(w)
    kept[reference.row_indices(Pattern.build(crow, col, w.shape)), col.long()] = 1
    assert kept.sum() == col.shape[0] == shape.keep
    assert torch.equal(projected, w * kept)
    assert torch.equal(projected, reference.topk_project_(w.clone(), *rule))
    before = w.clone()
    selected = topk_select(w, *rule)
    assert torch.equal(w, before)
    assert torch.equal(selected[0], crow)
    assert torch.equal(selected[1], col)
    if shape.floor:
        assert (kept.sum(1 - shape.axis) >= shape.floor).all()


MATRICES_BY_HAND = [
    pytest.param([[2.0, -2], [2, -2]], (3,), [[2.0, -2], [2, 0]], id="ties"),
    pytest.param([[1.0, 5, 3], [-3, 3, 9]], (3,), [[0.0, 5, 3], [0, 0, 9]], id="ties-at-the-cut"),
    pytest.param([[0.0, -0.0], [0, 0]], (2,), [[0.0, 0], [0, 0]], id="zeros"),
    pytest.param([[INF, -INF, 1], [2, INF, 3]], (2,), [[INF, -INF, 0], [0, 0, 0]], id="infinities"),
    pytest.param([[1.0, 1, 9], [1, 1, 8]], (3, 1, 0), [[1.0, 0, 9], [0, 0, 8]], id="row-floor"),
    pytest.param([[9.0, 8, 7], [1, 1, 1]], (4, 1, 0), [[9.0, 8, 7], [1, 0, 0]], id="row-floor-tie"),
    pytest.param([[1.0, 3, -3, 5], [2, 2, 2, 9]], (4, 2, 0), [[0.0, 3, 0, 5], [2, 0, 0, 9]], id="floor-ties"),
    pytest.param([[9.0, 1, 7], [8, 1, 1]], (4, 1, 1), [[9.0, 1, 7], [8, 0, 0]], id="column-floor-tie"),
    pytest.param([[9.0, 1], [8, 2], [7, 2]], (2, 1, 1), [[9.0, 0], [0, 2], [0, 0]], id="only-the-floor"),
    pytest.param([[1.0, 2], [3, 4]], (0,), [[0.0, 0], [0, 0]], id="none"),
    pytest.param([[1.0, -0.0], [3, 4]], (4,), [[1.0, -0.0], [3, 4]], id="all"),
]


@pytest.mark.parametrize(("w", "rule", "kept"), MATRICES_BY_HAND)
@both_dtypes
def test_project_by_hand(
    w: list[list[float]], rule: tuple[int, ...], kept: list[list[float]], dtype: torch.dtype, backend: str
) -> None:
    weight = torch.tensor(w, dtype=dtype)
    assert ops.topk_project_(weight, *rule) is weight
    assert torch.equal(weight, torch.tensor(kept, dtype=dtype))


@both_dtypes
@pytest.mark.parametrize("threads", [1, 3])
def test_project_refuses_nan(threads: int, dtype: torch.dtype, isa: str, set_threads: Callable[[int], None]) -> None:
    set_threads(threads)
    w = tied_matrix(257, 70, dtype)
    w[40, 69] = w[200, 3] = NAN
    before, version = w.clone(), w._version
    with pytest.raises(RuntimeError, match=r"topk_project_: weight must not contain NaN, found one at \[40, 69\]"):
        ops.topk_project_(w, 100)
    assert_same_bits([w], [before])
    assert w._version == version


@both_dtypes
@pytest.mark.parametrize(("floor", "axis"), [(0, None), (2, 0), (2, 1)])
def test_project_on_a_gpu_shows_nan(floor: int, axis: int | None, dtype: torch.dtype, gpu_backend: str) -> None:
    w = tied_matrix(57, 70, dtype)
    w[40, 69] = w[50, 3] = NAN
    crow, col, nan_at = raw.topk_project_(w, 300, floor, axis or 0)
    assert nan_at.item() == 40 * 70 + 69
    assert w.isnan().nonzero().tolist() == [[40, 69], [50, 3]]  # kept
    raw.csr_validate(crow.cpu(), col.cpu(), 70)
    assert raw.topk_select(torch.ones_like(w), 300, 0, 0)[2].item() == NO_NAN


def test_project_a_transposed_matrix(backend: str) -> None:
    w = tied_matrix(33, 70)
    view = w.clone().T
    storage = view.data_ptr()
    crow, col = topk_project_pattern_(view, 100)
    assert view.data_ptr() == storage
    assert torch.equal(view, reference.topk_project_(w.T.clone(), 100))
    raw.csr_validate(crow.cpu(), col.cpu(), 33)


def test_project_is_seen_by_autograd() -> None:
    w = torch.randn(5, 7, requires_grad=True)
    loss = (w * w).sum()
    ops.topk_project_(w, 9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert w.is_leaf
    assert w.requires_grad


@both_dtypes
def test_abs_topk_takes_slices_as_they_are(dtype: torch.dtype, isa: str) -> None:
    x = Draw(dtype).normal(3, 4, 60)
    x[1, 2, 7] = NAN
    for part in (*x.chunk(3, -1), x[1:, ::2, 5:6], x[:, :1], x.transpose(0, 1)):
        assert_same_bits([ops.abs_topk(part, 1)], [ops.abs_topk(part.clone(memory_format=torch.contiguous_format), 1)])


@both_dtypes
@pytest.mark.parametrize("nnz", [900, 70 * 257])  # rows of some 13, and full ones
def test_a_token_does_not_depend_on_the_others(dtype: torch.dtype, nnz: int, isa: str) -> None:
    draw = Draw(dtype)
    w, x = draw.csr(70, 257, nnz), draw.normal(130, 257)
    whole = ops.csr_linear(x, w)
    for some in (slice(1), slice(77, 78), slice(5, 8), slice(100)):
        assert_same_bits([ops.csr_linear(x[some], w)], [whole[some]])


def test_skewed_rows(backend: str, set_threads: Callable[[int], None]) -> None:
    """One full row beside empty ones: blocks of equal work are uneven, and some are empty."""
    set_threads(3)
    full = torch.cat([torch.randn(1, 300), torch.zeros(40, 300)]).roll(20, 0)
    w = CSR.from_dense(full, nnz=300)
    for tokens in (1, 3):
        x = torch.randn(tokens, 300)
        torch.testing.assert_close(ops.csr_linear(x, w), x @ full.T)
