"""What blocks have beside the tests of every op."""

from typing import Any

import pytest
import torch
from opcases import BLOCKS, Blocks, Draw, build_bsr_linear, draw_blocks
from torch import Tensor

from sparsekern import BSR, ops


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_blocks_are_not_rounded_on_the_cpu(shape: Blocks, isa: str) -> None:
    problem = build_bsr_linear(shape, Draw(torch.bfloat16), with_bias=True)
    x, *rest = problem.inputs
    assert torch.equal(problem.op(x, *rest), problem.op(x.float(), *rest).bfloat16())


# ---- the format


def dense_of(w: BSR) -> Tensor:
    """By the definition of the format, block by block."""
    (n, k), (height, width) = w.shape, w.block
    dense = torch.zeros(-(-n // height) * height, -(-k // width) * width, dtype=w.dtype)
    for row in range(len(w.crow_indices) - 1):
        for p in range(int(w.crow_indices[row]), int(w.crow_indices[row + 1])):
            col = int(w.col_indices[p])
            dense[row * height : (row + 1) * height, col * width : (col + 1) * width] = w.values[p]
    return dense[:n, :k]


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_to_dense(shape: Blocks) -> None:
    w = draw_blocks(shape, Draw())
    assert torch.equal(w.to_dense(), dense_of(w))
    assert torch.equal(w.transpose().to_dense(), dense_of(w).T)
    assert torch.equal(w.gather(dense_of(w)).to_dense(), dense_of(w))
    w.validate()
    w.transpose().validate()


def test_from_dense_keeps_the_blocks_of_largest_norm() -> None:
    dense = torch.ones(33, 48)  # the lowest row of blocks is 1 high
    dense[0, 16] = 5
    dense[16:32, :16] = 2
    w = BSR.from_dense(dense, 16, blocks=3)
    assert w.crow_indices.tolist() == [0, 2, 3, 3]
    assert w.col_indices.tolist() == [0, 1, 0]  # of equal ones the first
    assert w.density == 3 / 9
    assert torch.equal(BSR.from_dense(dense, 16, density=1.0).to_dense(), dense)


def test_from_and_to_torch() -> None:
    w = BSR.random(64, 96, (16, 32), density=0.5)
    there = w.to_torch()
    assert there.layout == torch.sparse_bsr
    back = BSR.from_torch(there)
    assert torch.equal(back.values, w.values)
    assert all(map(torch.equal, back.pattern.tensors, w.pattern.tensors))
    with pytest.raises(ValueError, match="needs a shape divisible by"):
        BSR.random(64, 90, 16, density=0.5).to_torch()
    with pytest.raises(ValueError, match="layout torch.sparse_bsr, got torch.sparse_csr"):
        BSR.from_torch(torch.eye(16).to_sparse_csr())


def test_floor_of_a_random_matrix() -> None:
    w = BSR.random(16 * 50, 16 * 9, 16, blocks=70, floor=1, axis=0)
    assert w.blocks == 70
    assert w.crow_indices.diff().min() == 1


@pytest.mark.parametrize("block", [8, 0, (16, 48), (16, 16, 16)])
def test_sides_without_kernels_are_refused(block: Any) -> None:
    with pytest.raises(ValueError, match="block must have sides among 16, 32, 64, 128, got"):
        BSR.random(64, 64, block, density=0.5)


def test_broken_parts_are_refused() -> None:
    crow, col, values = torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2, 16, 16)
    BSR.from_parts(crow, col, values, (32, 32))
    for broken, message in (
        ((crow, torch.tensor([0, 2]), values, (32, 32)), "col_indices must be between 0 and 1"),
        ((crow, col, values, (48, 32)), "crow_indices must have N \\+ 1 = 4"),
        ((crow, col, values[:1], (32, 32)), "equal length"),
        ((crow, col, torch.ones(2), (32, 32)), r"values must have shape \(blocks, \*block\)"),
    ):
        with pytest.raises(ValueError, match=message):
            BSR.from_parts(*broken)


# ---- products by their matmul names


@pytest.mark.parametrize("transpose", [False, True])
def test_matmul_names(transpose: bool) -> None:
    draw = Draw()
    w = BSR.random(40, 70, (16, 32), density=0.5, dtype=torch.float64, generator=draw.generator)
    w = w.with_values(w.values.requires_grad_())
    dense = w.to_dense().detach().requires_grad_()
    s = dense.T if transpose else dense
    a, b = draw.normal(3, s.shape[0]).requires_grad_(), draw.normal(s.shape[1], 5).requires_grad_()
    for ours, theirs, factor in (
        (ops.dds(a, w, transpose=transpose), a @ s, a),
        (ops.dsd(w, b, transpose=transpose), s @ b, b),
    ):
        torch.testing.assert_close(ours, theirs)
        cotangent = draw.normal(*ours.shape)
        of_values, of_factor = torch.autograd.grad(ours, (w.values, factor), cotangent)
        of_dense, expected = torch.autograd.grad(theirs, (dense, factor), cotangent)
        torch.testing.assert_close(of_factor, expected)
        torch.testing.assert_close(of_values, w.gather(of_dense).values)


def test_sampled_product() -> None:
    draw = Draw()
    w = BSR.random(40, 70, (16, 32), density=0.5, dtype=torch.float64, generator=draw.generator)
    a, b = draw.normal(40, 6), draw.normal(6, 70)
    product = ops.sdd(a, b, w)
    torch.testing.assert_close(product.to_dense(), w.gather(a @ b).to_dense())
    torch.testing.assert_close(ops.sdd(a.T.contiguous().T, b, w).values, product.values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(3, 65)}, "bsr_linear: features of x must fill 2 blocks of 32, got 65"),
        ({"x": torch.ones(3, 64, dtype=torch.float16)}, "bsr_linear: x must be float32, bfloat16 or float64"),
        ({"bias": torch.ones(39)}, "bsr_linear: bias must be a contiguous vector of 40 elements"),
        ({"x": torch.tensor(1.0)}, "bsr_linear: x must have at least one dimension"),
    ],
)
def test_bad_input(arguments: dict[str, Tensor], message: str) -> None:
    w = BSR.random(40, 64, (16, 32), density=0.5)
    with pytest.raises(RuntimeError, match=message):
        ops.bsr_linear(**{"x": torch.ones(3, 64), "w": w, **arguments})
