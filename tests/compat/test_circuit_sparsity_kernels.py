"""The published functions on this library's kernels: their names, their signatures, their results."""

import inspect

import pytest
import torch

from sparsekern.compat import circuit_sparsity_kernels as kernels


def a_matrix(n: int = 37, k: int = 53) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


def test_the_published_signatures() -> None:
    functions = {
        name: f for name, f in vars(kernels).items() if inspect.isfunction(f) and f.__module__ == kernels.__name__
    }
    assert {name: list(inspect.signature(f).parameters) for name, f in functions.items() if name[0] != "_"} == {
        "sample_top_k": ["n", "k", "shape"],
        "dense_to_sparse_topk": ["x", "k", "scores", "abs", "exact"],
        "topk": ["x", "k", "abs", "exact", "dim"],
        "coo_dense_sparse_T_matmul": ["dense", "sparse_T", "impl"],
        "naive_torch_coo_dense_sparse_T_matmul": ["dense", "sparse_T"],
    }


@pytest.mark.parametrize("by_magnitude", [False, True])
@pytest.mark.parametrize("k", [0, 1, 100, 37 * 53, 10_000])
def test_topk_of_a_whole_matrix(k: int, by_magnitude: bool) -> None:
    x = a_matrix()
    values, flat = kernels.topk(x, k, abs=by_magnitude)
    expected = (x.abs() if by_magnitude else x).flatten().topk(min(k, x.numel())).indices
    assert set(flat.tolist()) == set(expected.tolist())
    assert torch.equal(values, x.flatten()[flat])


@pytest.mark.parametrize("by_magnitude", [False, True])
@pytest.mark.parametrize(("dim", "k"), [(0, 3 * 53), (1, 4 * 37), (0, 0)])
def test_topk_of_every_line(dim: int, k: int, by_magnitude: bool) -> None:
    x = a_matrix()
    values, flat = kernels.topk(x, k, abs=by_magnitude, dim=dim)
    kept = torch.zeros_like(x).flatten().index_fill_(0, flat, 1).view_as(x)
    score = x.abs() if by_magnitude else x
    lines = x.shape[1 - dim]
    assert torch.equal(kept.sum(dim), torch.full((lines,), k // lines).float())
    if k:
        assert (
            score.masked_fill(kept == 0, torch.inf).amin(dim) >= score.masked_fill(kept == 1, -torch.inf).amax(dim)
        ).all()
    assert torch.equal(values, x.flatten()[flat])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9])
def test_approximate_topk_misses_little(share: float) -> None:
    x = a_matrix(500, 700)
    k = int(share * x.numel())
    values, flat = kernels.topk(x, k, abs=True, exact=False)
    assert len(set(flat.tolist())) == k
    best = x.abs().flatten().topk(k).values
    assert values.abs().sum() >= 0.999 * best.sum()
    assert values.abs().min() >= 0.9 * best.min()


def test_approximate_topk_where_the_large_ones_are_together() -> None:
    """Rows that are much larger than others fill all buckets alike."""
    x = a_matrix(500, 700)
    x[:5] *= 100
    values, _ = kernels.topk(x, 5 * 700, abs=True, exact=False)
    assert values.abs().sum() >= 0.999 * x.abs().flatten().topk(5 * 700).values.sum()


@pytest.mark.parametrize("exact", [False, True])
def test_dense_to_sparse(exact: bool) -> None:
    x = a_matrix()
    found = kernels.dense_to_sparse_topk(x, 90, exact=exact)
    assert found._nnz() == 90
    kept = x.abs() >= x.abs().flatten().topk(90).values[-1]
    assert torch.equal(found.to_dense(), x * kept)
    other = a_matrix().flip(0)
    assert torch.equal(kernels.dense_to_sparse_topk(x, 90, scores=other, exact=True).to_dense(), (x * kept).flip(0))


def test_ties_are_counted() -> None:
    assert kernels.dense_to_sparse_topk(torch.zeros(5, 7), 9, exact=True)._nnz() == 9


def test_sampled_values_are_the_largest_of_normal_numbers() -> None:
    torch.manual_seed(0)
    values = kernels.sample_top_k(10_000, 100, (100, 100))
    torch.manual_seed(0)
    expected = torch.randn(10_000).abs().topk(100).values
    assert torch.equal(values.abs().sort(descending=True).values, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_product(dtype: torch.dtype) -> None:
    sparse = kernels.dense_to_sparse_topk(a_matrix(), 200, exact=True)
    dense = a_matrix(11, 53).to(dtype)
    found = kernels.coo_dense_sparse_T_matmul(dense, sparse, impl="anything")
    assert found.dtype == dtype
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    expected = kernels.naive_torch_coo_dense_sparse_T_matmul(dense, sparse)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_product_has_gradients() -> None:
    x, w = a_matrix(11, 53).requires_grad_(), a_matrix()
    sparse = kernels.dense_to_sparse_topk(w, 200, exact=True).coalesce().requires_grad_()
    kernels.coo_dense_sparse_T_matmul(x, sparse, "").square().sum().backward()
    x2 = a_matrix(11, 53).requires_grad_()
    w2 = sparse.detach().to_dense().requires_grad_()
    (x2 @ w2.T).square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sparse.grad.to_dense(), w2.grad * (w2 != 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.topk(a_matrix(), 100, dim=1), "k must be a multiple of the 37 rows, got 100"),
        (lambda: kernels.topk(a_matrix(), 100, dim=0), "k must be a multiple of the 53 columns, got 100"),
        (lambda: kernels.topk(a_matrix(), 74, dim=2), "dim must be None, 0 or 1, got 2"),
        (lambda: kernels.dense_to_sparse_topk(a_matrix(), 10_000), "k must be at most the 1961 entries, got 10000"),
        (lambda: kernels.dense_to_sparse_topk(a_matrix(), 1, a_matrix(2, 2)), r"scores must have shape \(37, 53\)"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
