"""``bsr_linear``: a program multiplies the blocks of one row of the grid by a block of tokens, on tensor cores.

With activations of 16 bits the values are rounded to these, as torch's own matmul would want them; sums are float32.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.reference import as_matrix
from .checks import VALUE_DTYPES, check_blocks, check_dims, check_float, check_grid, check_pattern, check_vector
from .launch import has_tensor_cores, launch, precision

_WIDEST = 64  # features of y per program: larger blocks are computed in parts, for want of registers


@dataclass(frozen=True)
class BlockPlan:
    """What a program computes and how."""

    block_t: int  # tokens
    depth: int  # features of x at a time
    num_warps: int
    num_stages: int


def plan_bsr_linear(tokens: int, in_side: int, dtype: torch.dtype) -> BlockPlan:
    """From the shape alone, so that the sums are always the same; not yet measured on a GPU."""
    if not has_tensor_cores(dtype):
        return BlockPlan(32, min(in_side, 64 // VALUE_DTYPES[dtype].itemsize), num_warps=8, num_stages=2)
    return BlockPlan(128 if tokens > 4096 else 64, min(in_side, 64), num_warps=4, num_stages=3)


@triton.jit(do_not_specialize=["tokens"])
def _bsr_linear(
    x,  # (tokens, features_in)
    values,  # (blocks, features of y, of x), or with an order (blocks, features of x, of y)
    order,
    crow,
    col,
    bias,
    y,  # (tokens, features_out)
    tokens,
    features_in,
    features_out,
    parts,
    ROW: tl.constexpr,  # entries from one row of a block to the next
    OUT: tl.constexpr,  # features of y, all or a part of a block's
    IN: tl.constexpr,
    BLOCK: tl.constexpr,  # entries
    DEPTH: tl.constexpr,  # features of x at a time
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # Features of y are the inner index: programs that run together share one block of tokens of x, which stays in L2.
    program = tl.program_id(0)
    part = program % parts
    row = part // (BLOCK // IN // OUT)
    o = (part % (BLOCK // IN // OUT)) * OUT + tl.arange(0, OUT)  # in the block
    n = row * (BLOCK // IN) + o
    t = (program // parts) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = t < tokens
    x_row = x + t.to(tl.int64)[:, None] * features_in
    sums = tl.zeros((BLOCK_T, OUT), values.dtype.element_ty)
    for step in range(tl.load(crow + row) * (IN // DEPTH), tl.load(crow + row + 1) * (IN // DEPTH)):
        p = step // (IN // DEPTH)
        i = (step % (IN // DEPTH)) * DEPTH + tl.arange(0, DEPTH)
        k = tl.load(col + p) * IN + i
        left = tl.load(x_row + k[None, :], mask=live[:, None] & (k < features_in)[None, :], other=0.0)
        at = p if order is None else tl.load(order + p)
        block = values + at.to(tl.int64) * BLOCK
        where = i[:, None] + o[None, :] * ROW if order is None else i[:, None] * ROW + o[None, :]
        right = tl.load(block + where, mask=(k < features_in)[:, None] & (n < features_out)[None, :], other=0.0)
        sums = tl.dot(left, right.to(left.dtype), sums, input_precision=PRECISION, out_dtype=sums.dtype)
    if bias is not None:
        sums += tl.load(bias + n, mask=n < features_out, other=0.0)[None, :]
    where = y + t.to(tl.int64)[:, None] * features_out + n[None, :]
    tl.store(where, sums.to(y.dtype.element_ty), mask=live[:, None] & (n < features_out)[None, :])


def bsr_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    row: Tensor,
    perm: Tensor,
    bias: Tensor | None,
    out_features: int,
    transposed: bool,
) -> Tensor:
    """y = x W^T + bias, or with ``transposed`` x W; values and bias are float32 where x has 16 bits."""
    op = "bsr_linear"
    check_dims(op, "x", x)
    check_float(op, "x", x)
    starts, features, others = (ccol, row, crow) if transposed else (crow, col, ccol)
    check_pattern(op, starts, features)
    if transposed:
        check_vector(op, "perm", perm, crow.dtype, features.shape[0])
    check_blocks(op, "values", values, VALUE_DTYPES[x.dtype], features.shape[0])
    out_side, in_side = (values.shape[2], values.shape[1]) if transposed else (values.shape[1], values.shape[2])
    grid_rows = starts.shape[0] - 1
    check_grid(op, "features of x", x.shape[-1], others.shape[0] - 1, in_side)
    check_grid(op, "features of y", out_features, grid_rows, out_side)
    if bias is not None:
        check_vector(op, "bias", bias, values.dtype, out_features)

    y = x.new_empty(*x.shape[:-1], out_features)
    if y.numel() == 0:
        return y
    source = as_matrix(x).contiguous()
    tokens = source.shape[0]
    width = min(out_side, _WIDEST)
    parts = grid_rows * (out_side // width)
    plan = plan_bsr_linear(tokens, in_side, x.dtype)
    launch(
        _bsr_linear,
        parts * triton.cdiv(tokens, plan.block_t),
        source,
        values.contiguous(),
        perm if transposed else None,
        starts,
        features,
        bias,
        y,
        tokens,
        source.shape[1],
        out_features,
        parts,
        ROW=values.shape[2],
        OUT=width,
        IN=in_side,
        BLOCK=out_side * in_side,
        DEPTH=plan.depth,
        PRECISION=precision(x.dtype),
        BLOCK_T=plan.block_t,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    return y
