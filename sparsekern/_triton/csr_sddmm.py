"""``csr_sddmm``: a program owns positions and sums over tokens, reading both operands feature-major."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import feature_major
from .checks import (
    VALUE_DTYPES,
    check_dims,
    check_features,
    check_float,
    check_pattern,
    check_vector,
    scalar_type,
    shape_of,
)
from .launch import launch
from .plain import row_indices

_BLOCK_P = 16  # positions per program
_CACHE = 24 << 20  # bytes of activations that a slice of tokens may have: half the L2 of an H100


@dataclass(frozen=True)
class SddmmPlan:
    """What a program sums: one slice of the tokens at some positions."""

    block_p: int  # positions
    block_t: int  # tokens at a time
    slice_tokens: int
    num_warps: int


def plan_sddmm(rows: int, cols: int, tokens: int, dtype: torch.dtype) -> SddmmPlan:
    """How to sum over ``tokens``; the slices follow from the shape alone, so the result is always the same."""
    # 512 bytes of tokens per position are one load of 16 bytes for each lane of a warp.
    block_t = min(512 // dtype.itemsize, max(16, triton.next_power_of_2(tokens)))
    # Each position reads other rows of both operands: they come from L2 if all programs work on the same tokens.
    fitting = _CACHE // max(1, (rows + cols) * dtype.itemsize)
    slice_tokens = max(fitting // block_t, 4) * block_t
    num_warps = max(1, _BLOCK_P * block_t * dtype.itemsize // (32 * 32))
    return SddmmPlan(_BLOCK_P, block_t, slice_tokens, num_warps)


@triton.jit(do_not_specialize=["nnz", "position_blocks"])
def _csr_sddmm(
    a,  # (rows, tokens), feature-major
    b,  # (cols, tokens), feature-major
    row,
    perm,
    col,
    out,  # (slices, nnz)
    nnz,
    position_blocks,
    tokens,
    slice_tokens,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # Positions are the inner index, the slice of tokens the outer one.  They are taken column by column, where the
    # pattern has the row of each at hand; neighbours read the same row of b.
    program = tl.program_id(0)
    piece = program // position_blocks
    q = (program % position_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    live = q < nnz
    p = tl.load(perm + q, mask=live, other=0)
    a_row = a + tl.load(row + q, mask=live, other=0).to(tl.int64) * tokens
    b_row = b + tl.load(col + p, mask=live, other=0).to(tl.int64) * tokens

    sums = tl.zeros((BLOCK_P, BLOCK_T), out.dtype.element_ty)
    begin = piece * slice_tokens
    for first in range(begin, tl.minimum(begin + slice_tokens, tokens), BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)[None, :]
        mask = live[:, None] & (t < tokens)
        left = tl.load(a_row[:, None] + t, mask=mask, other=0.0).to(sums.dtype)
        sums += left * tl.load(b_row[:, None] + t, mask=mask, other=0.0).to(sums.dtype)
    tl.store(out + piece.to(tl.int64) * nnz + p, tl.sum(sums, axis=1), mask=live)


def csr_sddmm(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor) -> Tensor:
    """v[p] = sum over tokens of a[t, row p] b[t, col p]; float32 where a and b have 16 bits."""
    op = "csr_sddmm"
    check_dims(op, "a and b", min(a, b, key=Tensor.dim))
    check_float(op, "a", a)
    check_pattern(op, crow, col)
    rows, cols, nnz = crow.shape[0] - 1, ccol.shape[0] - 1, col.shape[0]
    if a.dtype != b.dtype:
        raise RuntimeError(f"{op}: a and b must have the same dtype, got {scalar_type(a)} and {scalar_type(b)}")
    check_features(op, "a", a, rows)
    check_features(op, "b", b, cols)
    if a.shape[:-1] != b.shape[:-1]:
        raise RuntimeError(
            f"{op}: a and b must have the same leading dimensions, got shapes {shape_of(a)} and {shape_of(b)}"
        )
    if len(row) == 0:  # no transpose at hand: in the order of the positions themselves
        row, perm = row_indices(crow, col).to(col.dtype), torch.arange(nnz, dtype=col.dtype, device=col.device)
    check_vector(op, "row_indices", row, crow.dtype, nnz)
    check_vector(op, "perm", perm, crow.dtype, nnz)

    at, bt = feature_major(a), feature_major(b)
    tokens = at.shape[1]
    plan = plan_sddmm(rows, cols, tokens, a.dtype)
    slices = triton.cdiv(tokens, plan.slice_tokens)
    partial = a.new_empty(slices, nnz, dtype=VALUE_DTYPES[a.dtype])
    position_blocks = triton.cdiv(nnz, plan.block_p)
    if partial.numel() > 0:
        launch(
            _csr_sddmm,
            slices * position_blocks,
            at,
            bt,
            row,
            perm,
            col,
            partial,
            nnz,
            position_blocks,
            tokens,
            plan.slice_tokens,
            BLOCK_P=plan.block_p,
            BLOCK_T=plan.block_t,
            num_warps=plan.num_warps,
        )
    return partial[0] if slices == 1 else partial.sum(0)
