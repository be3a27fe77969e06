"""The CSR format: ways in, ways out, and what it refuses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern import CSR, Pattern, ops
from sparsekern.formats import count_nonzeros

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

DENSE = torch.tensor([[0.0, 2, 0, -1], [0, 0, 0, 0], [5, 0, 3, 0]])
CROW, COL, VALUES = torch.tensor([0, 2, 2, 4]), torch.tensor([1, 3, 0, 2]), torch.tensor([2.0, -1, 5, 3])
INDEX_NAMES = ("crow_indices", "col_indices", "ccol_indices", "row_indices", "perm")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example() -> CSR:
    return CSR.from_parts(CROW, COL, VALUES, (3, 4))


def assert_same_pattern(a: Pattern, b: Pattern) -> None:
    assert a.shape == b.shape
    for name, left, right in zip(INDEX_NAMES, a.tensors, b.tensors, strict=True):
        assert left.dtype == right.dtype, name
        assert torch.equal(left, right), name


# ---- from_parts


def test_parts_are_kept_and_the_transpose_is_computed() -> None:
    w = example()
    w.validate()
    expected = ([0, 2, 2, 4], [1, 3, 0, 2], [0, 1, 2, 3, 4], [2, 0, 2, 0], [2, 0, 3, 1])
    for name, tensor, numbers in zip(INDEX_NAMES, w.pattern.tensors, expected, strict=True):
        assert tensor.tolist() == numbers, name
        assert tensor.dtype == torch.int32, name
    assert (w.shape, w.nnz, w.density, w.dtype, w.device.type) == ((3, 4), 4, 1 / 3, torch.float32, "cpu")
    assert torch.equal(w.to_dense(), DENSE)
    assert repr(w) == "CSR(shape=(3, 4), nnz=4, density=33.333%, dtype=torch.float32, device=cpu)"


def test_explicit_zeros_count() -> None:
    w = CSR.from_parts(CROW, COL, torch.tensor([2.0, 0, 5, 0]), (3, 4))
    w.validate()
    assert w.nnz == 4
    assert ops.csr_sddmm(torch.ones(1, 3), torch.ones(1, 4), w).tolist() == [1, 1, 1, 1]


def test_gradients_reach_the_values_leaf() -> None:
    values = VALUES.clone().requires_grad_()
    w = CSR.from_parts(CROW, COL, values, (3, 4))
    assert w.values is values
    (ops.csr_linear(torch.tensor([[1.0, 2, 3, 4]]), w) * torch.tensor([1.0, 10, 100])).sum().backward()
    assert torch.equal(values.grad, torch.tensor([2.0, 4, 100, 300]))


@pytest.mark.parametrize(
    ("crow", "col", "values", "message"),
    [
        pytest.param([0, 2, 2, 4], [3, 1, 0, 2], 4, "ascend within a row .* position 1", id="unsorted"),
        pytest.param([0, 2, 2, 4], [1, 3, 2, 2], 4, "without duplicates, .* position 3", id="duplicate"),
        pytest.param([0, 2, 2, 4], [1, 4, 0, 2], 4, "between 0 and 3, but are not at position 1", id="high"),
        pytest.param([0, 2, 2, 4], [1, 3, -1, 2], 4, "between 0 and 3, but are not at position 2", id="low"),
        pytest.param([0, 2, 2, 4], [1, 2**32 + 3, 0, 2], 4, "between 0 and 3, .* position 1", id="overflow"),
        pytest.param([1, 2, 2, 4], [1, 3, 0, 2], 4, "crow_indices must begin with 0", id="crow-start"),
        pytest.param([2**32, 2, 2, 4], [1, 3, 0, 2], 4, "crow_indices must begin with 0", id="crow-overflow"),
        pytest.param([0, 3, 2, 4], [1, 3, 0, 2], 4, "must not decrease, but does after row 1", id="crow-falls"),
        pytest.param([0, 2, 2, 3], [1, 3, 0, 2], 4, "must be the number of col_indices, 4", id="crow-end"),
        pytest.param([0, 2, 2, 5], [1, 3, 0, 2], 4, "must be the number of col_indices, 4", id="crow-beyond"),
        pytest.param([0, 2, 4], [1, 3, 0, 2], 4, r"N \+ 1 = 4 entries, got \(3,\)", id="crow-length"),
        pytest.param([0, 2, 2, 4], [1, 3, 0, 2], 3, r"equal length, got \(3,\) and \(4,\)", id="values-length"),
        pytest.param([0, 2, 2, 4], [[1, 3, 0, 2]], 4, r"equal length, got \(4,\) and \(1, 4\)", id="col-matrix"),
        pytest.param([0, 2, 2, 4], [1.0, 3, 0, 2], 4, "col_indices must have scalar type Long", id="col-float"),
        pytest.param([0.0, 2, 2, 4], [1, 3, 0, 2], 4, "crow_indices must be int32 or int64", id="crow-float"),
    ],
)
def test_broken_parts_are_refused(crow: list[Any], col: list[Any], values: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CSR.from_parts(torch.tensor(crow), torch.tensor(col), torch.ones(values), (3, 4))


def test_validate_finds_a_broken_matrix() -> None:
    w = example()
    w.col_indices[1] = 9
    with pytest.raises(ValueError, match="col_indices must be between 0 and 3, but are not at position 1"):
        w.validate()


@pytest.mark.parametrize("name", INDEX_NAMES[2:])
def test_validate_finds_a_broken_transpose(name: str) -> None:
    w = example()
    broken = dataclasses.replace(w.pattern, **{name: getattr(w.pattern, name).flip(0)})
    with pytest.raises(ValueError, match=f"{name} does not describe the transpose"):
        CSR(w.values, broken).validate()


# ---- from_dense


@pytest.mark.parametrize("nnz", [0, 1, 3, 4, 7, 12])
def test_from_dense_keeps_exactly_the_largest(nnz: int) -> None:
    w = CSR.from_dense(DENSE, nnz=nnz)
    w.validate()
    assert w.nnz == nnz
    assert torch.equal(w.to_dense(), ops.topk_project_(DENSE.clone(), nnz))


def test_from_dense_gives_ties_to_the_first() -> None:
    w = CSR.from_dense(torch.tensor([[1.0, -1, 1], [-1, 1, 2]]), nnz=4)
    assert torch.equal(w.to_dense(), torch.tensor([[1.0, -1, 1], [0, 0, 2]]))


def test_from_dense_rounds_the_density_down() -> None:
    assert CSR.from_dense(torch.randn(10, 10, generator=seeded()), density=0.138).nnz == 13
    assert CSR.from_dense(torch.randn(5, 7, generator=seeded()), density=1).nnz == 35
    assert CSR.from_dense(torch.randn(5, 7, generator=seeded()), density=0.028).nnz == 0


def test_from_dense_leaves_the_matrix_alone() -> None:
    dense = DENSE.clone().requires_grad_()
    w = CSR.from_dense(dense, nnz=1)
    w.values.zero_()
    assert torch.equal(dense.detach(), DENSE)
    assert not w.values.requires_grad


def test_from_dense_of_a_transposed_matrix() -> None:
    assert torch.equal(CSR.from_dense(DENSE.T, nnz=4).to_dense(), DENSE.T)


# ---- random


@pytest.mark.parametrize(("n", "k", "nnz"), [(50, 40, 7), (50, 40, 600), (50, 40, 2000), (0, 4, 0), (4, 0, 0)])
def test_random_has_exactly_nnz_distinct_positions(n: int, k: int, nnz: int) -> None:
    w = CSR.random(n, k, nnz=nnz, generator=seeded())
    w.validate()
    assert (w.shape, w.nnz, w.values.numel()) == ((n, k), nnz, nnz)
    rows = torch.repeat_interleave(torch.arange(n), w.crow_indices.diff().long())
    assert torch.unique(rows * k + w.col_indices).numel() == nnz


def test_random_follows_the_generator() -> None:
    a, b, c = (CSR.random(50, 40, density=0.1, generator=seeded(seed)) for seed in (1, 1, 2))
    assert a.nnz == 200
    assert torch.equal(a.to_dense(), b.to_dense())
    assert not torch.equal(a.col_indices, c.col_indices)


def test_random_is_uniform() -> None:
    hits = sum((CSR.random(4, 5, nnz=3, generator=seeded(i)).to_dense() != 0).double() for i in range(2000))
    # 2000 matrices hit a position 300 times on average, with a standard deviation of 16
    assert (hits - 300).abs().max() < 64
    values = CSR.random(100, 100, density=1, generator=seeded(), dtype=torch.float64).values
    assert values.dtype == torch.float64
    assert abs(values.mean()) < 0.04
    assert abs(values.std() - 1) < 0.03


@pytest.mark.parametrize(
    ("count", "message"),
    [
        pytest.param({}, "exactly one of nnz and density", id="neither"),
        pytest.param({"nnz": 1, "density": 0.1}, "exactly one of nnz and density", id="both"),
        pytest.param({"density": 1.01}, "density must be between 0 and 1, got 1.01", id="density-high"),
        pytest.param({"density": -0.1}, "density must be between 0 and 1, got -0.1", id="density-low"),
        pytest.param({"nnz": 13}, "nnz must be between 0 and 12 .* got 13", id="nnz-high"),
        pytest.param({"nnz": -1}, "nnz must be between 0 and 12 .* got -1", id="nnz-low"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda nnz=None, density=None: count_nonzeros((3, 4), nnz, density), id="count"),
        pytest.param(lambda **count: CSR.random(3, 4, **count), id="random"),
        pytest.param(lambda **count: CSR.from_dense(DENSE, **count), id="from_dense"),
    ],
)
def test_wrong_counts_are_refused(make: Callable[..., Any], count: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**count)


# ---- torch.sparse


@pytest.mark.parametrize(
    "convert",
    [Tensor.clone, Tensor.to_sparse_coo, Tensor.to_sparse_csr, Tensor.to_sparse_csc],
    ids=["dense", "coo", "csr", "csc"],
)
def test_from_torch(convert: Callable[[Tensor], Tensor]) -> None:
    w = CSR.from_torch(convert(DENSE))
    w.validate()
    assert_same_pattern(w.pattern, example().pattern)
    assert torch.equal(w.values, VALUES)


def test_from_torch_adds_repeated_coo_entries() -> None:
    coo = torch.sparse_coo_tensor([[1, 0, 1], [0, 1, 0]], [1.0, 2, 3], (2, 3))
    assert torch.equal(CSR.from_torch(coo).to_dense(), torch.tensor([[0.0, 2, 0], [4, 0, 0]]))


def test_to_torch_and_back() -> None:
    w = CSR.random(50, 40, nnz=60, generator=seeded())
    tensor = w.to_torch()
    assert tensor.layout == torch.sparse_csr
    assert torch.equal(tensor.to_dense(), w.to_dense())
    assert tensor.values().data_ptr() == w.values.data_ptr()
    back = CSR.from_torch(tensor)
    assert_same_pattern(back.pattern, w.pattern)
    assert torch.equal(back.values, w.values)


def test_to_torch_is_detached() -> None:
    w = CSR.from_parts(CROW, COL, VALUES.clone().requires_grad_(), (3, 4))
    assert not w.to_torch().requires_grad


@pytest.mark.parametrize("make", [CSR.from_torch, lambda t: CSR.from_dense(t, nnz=1)], ids=["torch", "dense"])
def test_vectors_are_refused(make: Callable[[Tensor], CSR]) -> None:
    with pytest.raises(ValueError, match=r"must be a matrix, got shape \(4,\)"):
        make(DENSE[0])


# ---- conversions


def test_to_dense_is_differentiable() -> None:
    values = VALUES.double().requires_grad_()
    w = CSR.from_parts(CROW, COL, values, (3, 4))
    w.to_dense().backward(torch.arange(12.0, dtype=torch.float64).view(3, 4))
    assert values.grad.tolist() == [1, 3, 8, 10]


@pytest.mark.parametrize(("n", "k", "nnz"), [(50, 40, 60), (3, 90, 100), (5, 5, 25), (0, 4, 0), (4, 0, 0)])
def test_transpose(n: int, k: int, nnz: int) -> None:
    w = CSR.random(n, k, nnz=nnz, generator=seeded())
    t = w.transpose()
    t.validate()
    assert t.shape == (k, n)
    assert torch.equal(t.to_dense(), w.to_dense().T)
    assert_same_pattern(t.transpose().pattern, w.pattern)
    assert torch.equal(t.transpose().values, w.values)


def test_transpose_is_differentiable() -> None:
    values = VALUES.clone().requires_grad_()
    t = CSR.from_parts(CROW, COL, values, (3, 4)).transpose()
    t.values.backward(torch.tensor([1.0, 2, 3, 4]))
    assert values.grad.tolist() == [2, 4, 1, 3]


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_another_dtype_keeps_the_indices(index: torch.dtype) -> None:
    w = CSR(VALUES, Pattern.build(CROW.to(index), COL.to(index), (3, 4)))
    w.validate()
    double = w.to(dtype=torch.float64)
    assert double.dtype == torch.float64
    assert [t.dtype for t in double.pattern.tensors] == [index] * 5
    assert_same_pattern(double.pattern, w.pattern)
    assert torch.equal(double.to_dense(), DENSE.double())
    assert w.to(device="cpu").dtype == torch.float32
