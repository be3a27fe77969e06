"""``csr_linear``: a block of rows of the weight gathers blocks of tokens from the feature-major activations."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.reference import as_matrix
from .activations import feature_major
from .checks import VALUE_DTYPES, check_dims, check_features, check_float, check_pattern, check_vector
from .csr_sddmm import csr_sddmm
from .launch import launch

_BLOCK_N = 16  # rows per program: 16 outputs of one token fill a memory sector (32 bytes) also in 16 bits


@dataclass(frozen=True)
class LinearPlan:
    """The tile of y that a program computes, and how it goes through the nonzeros of its rows."""

    block_n: int  # rows of the weight
    block_t: int  # tokens
    even: int  # length up to which the rows advance in step
    unroll: int  # nonzeros of each row at a time
    num_warps: int


def plan_linear(rows: int, nnz: int, tokens: int, dtype: torch.dtype) -> LinearPlan:
    # 512 bytes of tokens per nonzero are one load of 16 bytes for each lane of a warp.
    block_t = min(512 // dtype.itemsize, max(16, triton.next_power_of_2(tokens)))
    mean = triton.next_power_of_2(max(1, triton.cdiv(nnz, rows)))
    # 32 bytes of loads per thread and nonzero: with few registers, many programs share a multiprocessor.
    num_warps = max(1, _BLOCK_N * block_t * dtype.itemsize // (32 * 32))
    return LinearPlan(_BLOCK_N, block_t, even=4 * mean, unroll=min(mean, 2), num_warps=num_warps)


@triton.jit
def _load_nonzeros(x, values, order, col, p, live, t, stride):
    """values[p] and the tokens t of its feature, as columns and rows of one tile; zeros where not ``live``."""
    feature = tl.load(col + p, mask=live, other=0).to(tl.int64)
    at = p if order is None else tl.load(order + p, mask=live, other=0)
    value = tl.load(values + at, mask=live, other=0.0)
    mask = live[:, None] & (t < stride)[None, :]
    tile = tl.load(x + feature[:, None] * stride + t[None, :], mask=mask, other=0.0)
    return value[:, None], tile.to(value.dtype)


@triton.jit(do_not_specialize=["row_blocks", "tokens"])
def _csr_linear(
    x,  # (cols, stride), feature-major
    values,
    order,
    crow,
    col,
    bias,
    y,  # (tokens, rows)
    rows,
    row_blocks,
    tokens,
    stride,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    EVEN: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # Row blocks are the inner index: programs that run together share one block of tokens of x, which stays in L2.
    program = tl.program_id(0)
    n0 = (program % row_blocks) * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    t = (program // row_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    begin = tl.load(crow + n, mask=n < rows, other=0)
    end = tl.load(crow + n + 1, mask=n < rows, other=0)
    longest = tl.max(end - begin, axis=0)

    # The rows advance in step, so that each load is BLOCK_N nonzeros wide; a row that has ended loads nothing.
    sums = tl.zeros((BLOCK_N, BLOCK_T), values.dtype.element_ty)
    for first in range(0, tl.minimum(longest, EVEN), UNROLL):
        for u in tl.static_range(UNROLL):
            p = begin + first + u
            value, tile = _load_nonzeros(x, values, order, col, p, p < end, t, stride)
            sums += value * tile

    # What a row has beyond the even length (some neurons of a trained weight do) is loaded BLOCK_N nonzeros at a time.
    if longest > EVEN:
        for i in range(BLOCK_N):
            start = tl.load(crow + n0 + i, mask=n0 + i < rows, other=0)
            stop = tl.load(crow + n0 + i + 1, mask=n0 + i < rows, other=0)
            for first in range(start + EVEN, stop, BLOCK_N):
                p = first + tl.arange(0, BLOCK_N)
                value, tile = _load_nonzeros(x, values, order, col, p, p < stop, t, stride)
                more = tl.sum(value * tile, axis=0)
                sums += tl.where(tl.arange(0, BLOCK_N)[:, None] == i, more[None, :], 0.0)

    if bias is not None:
        sums += tl.load(bias + n, mask=n < rows, other=0.0)[:, None]
    # y is written once, token-major, from the tile; a feature-major y would have to be read and written again.
    where = y + t[None, :].to(tl.int64) * rows + n[:, None]
    tl.store(where, sums.to(y.dtype.element_ty), mask=(n < rows)[:, None] & (t < tokens)[None, :])


def csr_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    row: Tensor,
    perm: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """y = x W^T + bias, or with ``transposed`` x W; values and bias are float32 where x has 16 bits."""
    op = "csr_linear"
    check_dims(op, "x", x)
    check_float(op, "x", x)
    starts, features, others = (ccol, row, crow) if transposed else (crow, col, ccol)
    check_pattern(op, starts, features)
    rows, cols, nnz = starts.shape[0] - 1, others.shape[0] - 1, features.shape[0]
    check_vector(op, "values", values, VALUE_DTYPES[x.dtype], nnz)
    if transposed:
        check_vector(op, "perm", perm, crow.dtype, nnz)
    check_features(op, "x", x, cols)
    if bias is not None:
        check_vector(op, "bias", bias, values.dtype, rows)

    y = x.new_empty(*x.shape[:-1], rows)
    if y.numel() == 0:
        return y
    tokens = as_matrix(x).shape[0]
    source = feature_major(x)
    plan = plan_linear(rows, nnz, tokens, x.dtype)
    row_blocks = triton.cdiv(rows, plan.block_n)
    launch(
        _csr_linear,
        row_blocks * triton.cdiv(tokens, plan.block_t),
        source,
        values,
        perm if transposed else None,
        starts,
        features,
        bias,
        y,
        rows,
        row_blocks,
        tokens,
        source.shape[1],
        BLOCK_N=plan.block_n,
        BLOCK_T=plan.block_t,
        EVEN=plan.even,
        UNROLL=plan.unroll,
        num_warps=plan.num_warps,
    )
    return y


def csr_linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of values, by two kernels."""
    pattern = (crow, col, ccol, row, perm)
    return csr_linear(grad, values, *pattern, None, True), csr_sddmm(grad, x, *pattern)
