"""``causal_attention`` against its formula in float64, at every instruction set."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.ops import reference
from sparsekern.ops.causal_attention import by_torch
from sparsekern.ops.dtypes import value_dtype

SHAPES = [  # batch, tokens, heads, width
    (2, 256, 3, 16),
    (1, 1, 1, 8),
    (2, 64, 2, 8),
    (1, 65, 17, 8),  # more heads than are read together
    (3, 130, 2, 32),
    (1, 200, 3, 20),  # no whole number of vectors
    (1, 33, 2, 5),
    (1, 100, 1, 48),
    (1, 7, 3, 1),
    (0, 4, 2, 8),
    (2, 0, 3, 8),
    (2, 5, 0, 8),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
both_sinks = pytest.mark.parametrize("with_sink", [False, True], ids=["plain", "sink"])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-14, torch.bfloat16: 1e-2}  # of the largest number


def draw(shape: tuple[int, ...], with_sink: bool, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, and the sink if there is one."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, dtype=value_dtype(dtype), generator=generator).to(dtype) for _ in range(3)]
    return drawn + [torch.randn(shape[2], dtype=value_dtype(dtype), generator=generator)] * with_sink


def outcome(fn: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result, then the gradients of all inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = fn(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def assert_right(fn: Callable[..., Tensor], inputs: list[Tensor], tolerance: float) -> None:
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad = grad.to(inputs[0].dtype).double()
    expected = outcome(reference.causal_attention, [t.double() for t in inputs], grad)
    actual = outcome(fn, inputs, grad.to(inputs[0].dtype))
    assert [a.dtype for a in actual] == [t.dtype for t in (inputs[0], *inputs)]
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        largest = float(e.abs().max()) if e.numel() else 0.0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * (1 + largest))


@both_sinks
@every_shape
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "f64", "bf16"])
def test_result_and_gradients(shape: tuple[int, ...], with_sink: bool, dtype: torch.dtype, isa: str) -> None:
    assert_right(ops.causal_attention, draw(shape, with_sink, dtype), TOLERANCE[dtype])


@both_sinks
@every_shape
def test_by_torch(shape: tuple[int, ...], with_sink: bool) -> None:
    """What a GPU runs."""
    inputs = draw(shape, with_sink, torch.float64)
    if 0 in shape:
        assert ops.causal_attention(*inputs).shape == shape
    else:
        assert_right(lambda q, k, v, sink=None: by_torch(q, k, v, sink), inputs, 1e-14)


@both_sinks
def test_derivatives(with_sink: bool) -> None:
    leaves = [t.requires_grad_() for t in draw((2, 3, 2, 2), with_sink, torch.float64)]
    assert torch.autograd.gradcheck(ops.causal_attention, leaves)
    assert torch.autograd.gradgradcheck(ops.causal_attention, leaves)


@both_sinks
@pytest.mark.parametrize("fixed", [0, 1, 2])
def test_second_derivatives_with_inputs_that_need_none(fixed: int, with_sink: bool) -> None:
    leaves = draw((1, 3, 2, 2), with_sink, torch.float64)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i != fixed)
    assert torch.autograd.gradgradcheck(ops.causal_attention, leaves)


@both_sinks
def test_second_derivatives_of_bfloat16(with_sink: bool) -> None:
    def second(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        first = torch.autograd.grad(ops.causal_attention(*leaves).sum(), leaves[:3], create_graph=True)
        return torch.autograd.grad(sum(g.double().square().sum() for g in first), leaves)

    inputs = draw((1, 9, 2, 4), with_sink, torch.bfloat16)
    actual, expected = second(inputs), second([t.double() for t in inputs])
    for a, t, e in zip(actual, inputs, expected, strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a.double(), e, rtol=0, atol=0.03 * float(e.abs().max()))


@pytest.mark.parametrize("factor", [30.0, 1e4])
def test_large_scores(factor: float, isa: str) -> None:
    """A softmax of one winner each: nothing overflows, and what vanishes is zero."""
    q, k, v = draw((1, 130, 2, 16), False, torch.float32)
    y, *gradients = outcome(ops.causal_attention, [factor * q, k, v], torch.ones_like(q))
    expected = reference.causal_attention(factor * q.double(), k.double(), v.double())
    torch.testing.assert_close(
        y.double(), expected, rtol=0, atol=1e-6 * factor
    )  # scores are rounded relative to their size
    assert all(g.isfinite().all() for g in gradients)
    assert y.abs().max() <= v.abs().max() * (1 + 1e-6)


def test_a_nan_stays_visible_where_it_is_attended_to() -> None:
    q, k, v = draw((1, 70, 2, 8), False, torch.float32)
    k[0, 66, 1, 3] = torch.nan
    is_nan = ops.causal_attention(q, k, v).isnan()
    assert is_nan[0, 66:, 1].all()
    assert not is_nan[0, :66].any()
    assert not is_nan[0, :, 0].any()


def test_later_tokens_and_other_heads_do_not_matter() -> None:
    q, k, v = draw((2, 100, 12, 16), False, torch.float32)
    whole = ops.causal_attention(q, k, v)
    for cut in ((slice(1), slice(70), slice(None)), (slice(None), slice(None), slice(9, 10))):
        assert torch.equal(ops.causal_attention(q[cut], k[cut], v[cut]), whole[cut])


def test_threads_and_strides_do_not_matter(set_threads: Callable[[int], None]) -> None:
    q, k, v = draw((3, 100, 12, 16), False, torch.float32)
    grad = torch.ones_like(q)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(outcome(ops.causal_attention, [q, k, v], grad))
    q, k, v = torch.cat([t.flatten(2) for t in (q, k, v)], dim=2).chunk(3, dim=2)
    strided = [t.unflatten(2, (12, 16)) for t in (q, k, v)]
    assert not strided[0].is_contiguous()
    results.append(outcome(ops.causal_attention, strided, grad.transpose(1, 2).contiguous().transpose(1, 2)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_autocast_casts_all_but_the_sink() -> None:
    q, k, v, sink = draw((1, 20, 2, 8), True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.causal_attention(q, k.bfloat16(), v, sink)
    assert torch.equal(y, ops.causal_attention(*(t.bfloat16() for t in (q, k, v)), sink))


def test_compiled_equals_eager() -> None:
    inputs = draw((1, 20, 2, 8), True, torch.float32)
    grad = torch.ones_like(inputs[0])
    torch._dynamo.reset()
    compiled = torch.compile(ops.causal_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    assert all(map(torch.equal, outcome(compiled, inputs, grad), outcome(ops.causal_attention, inputs, grad)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, s: (q[0], k, v, s), r"q must have shape \(batch, tokens, heads, width\), got \(5, 3, 4\)"),
        (
            lambda q, k, v, s: (q, k[:, :4], v, s),
            r"k must have the shape and dtype of q, \(2, 5, 3, 4\), got \(2, 4, 3, 4\)",
        ),
        (lambda q, k, v, s: (q, k, v.double(), s), "v must have the shape and dtype of q"),
        (lambda q, k, v, s: (q, k, v, s[:2]), "sink must be a contiguous vector of 3 elements, got shape"),
        (lambda q, k, v, s: (q.half(), k, v, s), "q must be float32, bfloat16 or float64 on the CPU"),
        (lambda q, k, v, s: (q.bfloat16(), k, v, s), "k must have the shape and dtype of q"),
        (lambda q, k, v, s: (q[..., :0], k[..., :0], v[..., :0], s), "q must have a width of at least 1"),
    ],
)
def test_bad_input(change: Callable[..., tuple[Tensor, ...]], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"causal_attention: {message}"):
        ops.causal_attention(*change(*draw((2, 5, 3, 4), True, torch.float32)))
