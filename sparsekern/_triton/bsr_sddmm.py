"""``bsr_sddmm``: a program computes one block, a product over the tokens of a slice, on tensor cores."""

import triton
import triton.language as tl
from torch import Tensor

from ..ops.reference import as_matrix
from .checks import VALUE_DTYPES, check_dims, check_float, check_grid, check_pattern, check_side, scalar_type, shape_of
from .launch import Tile, launch_best, precision
from .plain import row_indices

_SLICE = 2048  # tokens that one program adds up; follows from nothing but the shape, so the result is always the same
_WIDEST = 64  # rows and columns per program: larger blocks are computed in parts, for want of registers
_TILES = (
    Tile({"BLOCK_T": 64}, num_warps=4, num_stages=3),
    Tile({"BLOCK_T": 32}, num_warps=4, num_stages=3),
    Tile({"BLOCK_T": 128}, num_warps=4, num_stages=2),
    Tile({"BLOCK_T": 64}, num_warps=8, num_stages=3),
)
_TILES_WITHOUT_TENSOR_CORES = (
    Tile({"BLOCK_T": 16}, num_warps=4, num_stages=2),
    Tile({"BLOCK_T": 32}, num_warps=8, num_stages=2),
)


@triton.jit(do_not_specialize=["blocks", "tokens"])
def _bsr_sddmm(
    a,  # (tokens, rows)
    b,  # (tokens, cols)
    row,
    col,
    out,  # (slices, blocks, HEIGHT, WIDTH)
    blocks,
    tokens,
    rows,
    cols,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    HEIGHT: tl.constexpr,  # rows and columns of a part of a block
    WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # Parts of blocks are the inner index, in the order of the rows of the grid: neighbours read the same features of a.
    PARTS: tl.constexpr = (BLOCK_ROWS // HEIGHT) * (BLOCK_COLS // WIDTH)
    program = tl.program_id(0)
    part = program % PARTS
    position = program // PARTS  # of (slices, blocks)
    p = position % blocks
    begin = (position // blocks) * SLICE
    i = (part // (BLOCK_COLS // WIDTH)) * HEIGHT + tl.arange(0, HEIGHT)
    j = (part % (BLOCK_COLS // WIDTH)) * WIDTH + tl.arange(0, WIDTH)
    n = tl.load(row + p) * BLOCK_ROWS + i
    k = tl.load(col + p) * BLOCK_COLS + j
    sums = tl.zeros((HEIGHT, WIDTH), out.dtype.element_ty)
    for first in range(begin, tl.minimum(begin + SLICE, tokens), BLOCK_T):
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
    slices = triton.cdiv(tokens, _SLICE)
    partial = a.new_empty(slices, blocks, block_rows, block_cols, dtype=VALUE_DTYPES[a.dtype])
    if partial.numel() > 0:
        height, width = min(block_rows, _WIDEST), min(block_cols, _WIDEST)
        parts = (block_rows // height) * (block_cols // width)
        how = precision(a.dtype)
        launch_best(
            _bsr_sddmm,
            _TILES_WITHOUT_TENSOR_CORES if how == "ieee" else _TILES,
            lambda tile: slices * blocks * parts,
            ("rows", "cols", "BLOCK_ROWS", "BLOCK_COLS"),
            left,
            right,
            row_indices(crow, col).to(col.dtype),
            col,
            partial,
            blocks,
            tokens,
            left.shape[1],
            right.shape[1],
            BLOCK_ROWS=block_rows,
            BLOCK_COLS=block_cols,
            HEIGHT=height,
            WIDTH=width,
            SLICE=_SLICE,
            PRECISION=how,
        )
    return partial[0] if slices == 1 else partial.sum(0)
