"""``bsr_sddmm``: a program computes one block, a product over the tokens of a slice, on tensor cores."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.reference import as_matrix
from .checks import VALUE_DTYPES, check_dims, check_float, check_grid, check_pattern, check_side, scalar_type, shape_of
from .launch import has_tensor_cores, launch, precision
from .plain import row_indices

_WIDEST = 64  # rows and columns per program: larger blocks are computed in parts, for want of registers
_PROGRAMS = 512  # enough to fill a GPU: only where blocks are fewer, the tokens are cut into slices


@dataclass(frozen=True)
class BlockPlan:
    """What a program sums: one slice of the tokens."""

    block_t: int  # tokens at a time
    slice_tokens: int
    num_warps: int
    num_stages: int


def plan_bsr_sddmm(tokens: int, programs: int, dtype: torch.dtype) -> BlockPlan:
    """From the shape alone, so that the sums are always the same; not yet measured on a GPU."""
    fast = has_tensor_cores(dtype)
    block_t = 64 if fast else 16
    slices = min(triton.cdiv(_PROGRAMS, max(1, programs)), triton.cdiv(tokens, 2048))
    slice_tokens = triton.cdiv(triton.cdiv(tokens, max(1, slices)), block_t) * block_t
    return BlockPlan(block_t, slice_tokens, num_warps=4, num_stages=3 if fast else 2)


@triton.jit(do_not_specialize=["blocks", "tokens", "slice_tokens"])
def _bsr_sddmm(
    a,  # (tokens, rows)
    b,  # (tokens, cols)
    row,
    col,
    out,  # (slices, blocks, HEIGHT, WIDTH)
    blocks,
    tokens,
    slice_tokens,
    rows,
    cols,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    HEIGHT: tl.constexpr,  # rows and columns of a part of a block
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # Parts of blocks are the inner index, in the order of the rows of the grid: neighbours read the same features of a.
    PARTS: tl.constexpr = (BLOCK_ROWS // HEIGHT) * (BLOCK_COLS // WIDTH)
    program = tl.program_id(0)
    part = program % PARTS
    position = program // PARTS  # of (slices, blocks)
    p = position % blocks
    begin = (position // blocks) * slice_tokens
    i = (part // (BLOCK_COLS // WIDTH)) * HEIGHT + tl.arange(0, HEIGHT)
    j = (part % (BLOCK_COLS // WIDTH)) * WIDTH + tl.arange(0, WIDTH)
    n = tl.load(row + p) * BLOCK_ROWS + i
    k = tl.load(col + p) * BLOCK_COLS + j
    sums = tl.zeros((HEIGHT, WIDTH), out.dtype.element_ty)
    for first in range(begin, tl.minimum(begin + slice_tokens, tokens), BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        live, t = t < tokens, t.to(tl.int64)
        left = tl.load(a + t[:, None] * rows + n[None, :], mask=live[:, None] & (n < rows)[None, :], other=0.0)
        right = tl.load(b + t[:, None] * cols + k[None, :], mask=live[:, None] & (k < cols)[None, :], other=0.0)
        sums = tl.dot(tl.trans(left), right, sums, input_precision=PRECISION, out_dtype=sums.dtype)
    where = position.to(tl.int64) * (BLOCK_ROWS * BLOCK_COLS) + i[:, None] * BLOCK_COLS + j[None, :]
    tl.store(out + where, sums)


def bsr_sddmm(
    a: Tensor,
    b: Tensor,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    row: Tensor,
    perm: Tensor,
    block_rows: int,
    block_cols: int,
) -> Tensor:
    """The blocks of a^T b; float32 where a and b have 16 bits."""
    op = "bsr_sddmm"
    check_dims(op, "a and b", min(a, b, key=Tensor.dim))
    check_float(op, "a", a)
    check_pattern(op, crow, col)
    if a.dtype != b.dtype:
        raise RuntimeError(f"{op}: a and b must have the same dtype, got {scalar_type(a)} and {scalar_type(b)}")
    check_side(op, "block_rows", block_rows)
    check_side(op, "block_cols", block_cols)
    check_grid(op, "features of a", a.shape[-1], crow.shape[0] - 1, block_rows)
    check_grid(op, "features of b", b.shape[-1], ccol.shape[0] - 1, block_cols)
    if a.shape[:-1] != b.shape[:-1]:
        raise RuntimeError(
            f"{op}: a and b must have the same leading dimensions, got shapes {shape_of(a)} and {shape_of(b)}"
        )

    left, right = as_matrix(a).contiguous(), as_matrix(b).contiguous()
    tokens, blocks = left.shape[0], col.shape[0]
    height, width = min(block_rows, _WIDEST), min(block_cols, _WIDEST)
    programs = blocks * (block_rows // height) * (block_cols // width)
    plan = plan_bsr_sddmm(tokens, programs, a.dtype)
    slices = triton.cdiv(tokens, max(1, plan.slice_tokens))
    partial = a.new_empty(slices, blocks, block_rows, block_cols, dtype=VALUE_DTYPES[a.dtype])
    if partial.numel() > 0:
        launch(
            _bsr_sddmm,
            slices * programs,
            left,
            right,
            row_indices(crow, col).to(col.dtype),
            col,
            partial,
            blocks,
            tokens,
            plan.slice_tokens,
            left.shape[1],
            right.shape[1],
            BLOCK_ROWS=block_rows,
            BLOCK_COLS=block_cols,
            HEIGHT=height,
            WIDTH=width,
            PRECISION=precision(a.dtype),
            BLOCK_T=plan.block_t,
            num_warps=plan.num_warps,
            num_stages=plan.num_stages,
        )
    return partial[0] if slices == 1 else partial.sum(0)
