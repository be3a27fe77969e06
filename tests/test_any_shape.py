"""Every op on shapes, densities and layouts that nobody thought of, against float64.

Some hundreds of examples, always the same; ten thousand new ones for each op by ``make nightly``.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opcases import CASES, Blocks, Budget, Draw, OpCase, Rows, Shape
from test_ops import assert_right, cotangent_of, outcome
from torch import Tensor

from sparsekern import CSR, ops
from sparsekern.ops import reference

sizes = st.integers(0, 40)
leads = st.lists(st.integers(0, 12), max_size=2).map(tuple)
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**32)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
index_types = st.sampled_from([torch.int32, torch.int64])


def shapes(of: OpCase) -> st.SearchStrategy[Any]:
    return {Shape: matrices, Blocks: blocks, Rows: rows, Budget: budgets}[type(of.shapes[0])]()


@st.composite
def matrices(draw: st.DrawFn) -> Shape:
    lead = draw(leads)
    n, k = draw(st.integers(min(1, prod(lead)), 40)), draw(sizes)  # no row to embed: only without ids
    return Shape(lead, n, k, int(draw(fractions) * n * k))


@st.composite
def blocks(draw: st.DrawFn) -> Blocks:
    n, k = draw(st.integers(0, 100)), draw(st.integers(0, 100))
    sides = draw(st.tuples(*[st.sampled_from([16, 32, 64, 128])] * 2))
    there = -(-n // sides[0]) * -(-k // sides[1])
    return Blocks(draw(leads), n, k, sides, int(draw(fractions) * there))


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    width = draw(st.integers(0, 300))
    return Rows((*draw(leads), width), int(draw(fractions) * width))


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    n, k, axis = draw(sizes), draw(sizes), draw(st.sampled_from([None, 0, 1]))
    keep = int(draw(fractions) * n * k)
    neurons, wide = ((n, k), (k, n))[axis or 0]
    floor = 0 if axis is None else min(wide, int(draw(fractions) * keep / max(1, neurons)))
    return Budget(n, k, keep, floor, axis)


@pytest.mark.parametrize("case", CASES, ids=str)
@given(data=st.data(), dtype=dtypes, index=index_types, seed=seeds)
def test_result_and_gradients(
    case: OpCase, data: st.DataObject, dtype: torch.dtype, index: torch.dtype, seed: int
) -> None:
    draw = Draw(dtype, index, torch.Generator().manual_seed(seed))
    problem = case.build(data.draw(shapes(case)), draw)
    assert_right(case, problem, cotangent_of(case, problem, draw))


@pytest.mark.parametrize("case", [c for c in CASES if not c.rounding], ids=str)
@given(data=st.data(), magnitudes=st.integers(0, 3), seed=seeds)
def test_selections_among_equals(case: OpCase, data: st.DataObject, magnitudes: int, seed: int) -> None:
    """Few magnitudes make many ties, which go to the lowest index."""
    draw = Draw(torch.float32, generator=torch.Generator().manual_seed(seed))
    problem = case.build(data.draw(shapes(case)), draw)
    inputs = tuple((x * magnitudes).round() for x in problem.inputs)
    assert problem.op(*inputs).equal(problem.reference(*inputs))


def close_to_float64(op: Callable[..., Tensor], by_torch: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """The result and all gradients, to the accuracy of the dtype and the size of the whole."""
    cotangent = torch.randn(op(*inputs).shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)
    found = outcome(op, inputs, cotangent)
    expected = outcome(by_torch, tuple(x.double() for x in inputs), cotangent.double())
    for a, e in zip(found, expected, strict=True):
        assert a.shape == e.shape
        if a.numel():
            allowed = 200 * torch.finfo(inputs[0].dtype).eps * (1 + e.abs().max())
            assert (a.double() - e).abs().max() <= allowed


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(1, 5), st.integers(1, 33)),
    has_sink=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
def test_attention(shape: tuple[int, int, int, int], has_sink: bool, dtype: torch.dtype, seed: int) -> None:
    draw = Draw(dtype, generator=torch.Generator().manual_seed(seed))
    inputs = (*(draw.normal(*shape) for _ in range(3)), *([draw.weight(shape[2])] if has_sink else []))
    close_to_float64(ops.causal_attention, reference.causal_attention, inputs)


@given(lead=leads, width=st.integers(1, 300), dtype=dtypes, seed=seeds)
def test_rms_norm(lead: tuple[int, ...], width: int, dtype: torch.dtype, seed: int) -> None:
    draw = Draw(dtype, generator=torch.Generator().manual_seed(seed))

    def by_torch(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    inputs = draw.normal(*lead, width), draw.weight(width)
    close_to_float64(lambda x, gain: ops.rms_norm(x, gain, 1e-6), by_torch, inputs)


def test_more_products_than_an_int_counts() -> None:
    """Nonzeros times tokens above 2**31: sums of small integers are exact in float32, whatever their order."""
    tokens, n, k = 70_000, 200, 200
    pattern = CSR.random(n, k, nnz=n * k * 4 // 5).pattern
    w = CSR(torch.randint(-2, 3, (pattern.nnz,)).float(), pattern)
    assert tokens * pattern.nnz > 2**31
    x = torch.randint(-2, 3, (tokens, k)).float()
    dense = w.to_dense()
    y = ops.csr_linear(x, w)
    assert y.equal(x @ dense.T)
    assert ops.csr_sddmm(y, x, w).allclose((y.double().T @ x.double())[dense_places(w)].float(), rtol=1e-5, atol=1.0)


def dense_places(w: CSR) -> tuple[Tensor, Tensor]:
    flat = w.pattern.flat_indices()
    return flat // w.shape[1], flat % w.shape[1]
