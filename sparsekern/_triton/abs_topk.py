"""``abs_topk``: a program takes a row, or several short ones, and searches the magnitude of the k-th largest."""

from dataclasses import dataclass
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_dims, shape_of
from .launch import launch
from .magnitude import as_bits, cut_rows, keys_of

_MAX_WARPS = 16
_KEYS_PER_THREAD = 32  # of 32 bits, in registers while the cut is searched; fewer would make more rounds of reductions


@dataclass(frozen=True)
class RowPlan:
    """The rows of a program, and how many of their entries it holds."""

    block_r: int  # rows
    block_w: int  # entries of each in registers while its cut is searched
    chunk: int  # entries of each written at a time
    wide: bool  # rows are longer than block_w, and are read again for every bit of the cut
    num_warps: int


def plan_rows(width: int, dtype: torch.dtype) -> RowPlan:
    per_thread = _KEYS_PER_THREAD * 4 // max(4, dtype.itemsize)
    longest = _MAX_WARPS * 32 * per_thread
    wide = width > longest
    # a wide row is searched in halves of the longest tile: the next one is loaded while one is counted
    block_w = longest // 2 if wide else max(8, triton.next_power_of_2(width))
    block_r = max(1, 2048 // block_w)
    num_warps = max(1, block_r * block_w // (32 * per_thread))
    return RowPlan(block_r, block_w, max(8, block_w // 4), wide, num_warps)


@triton.jit(do_not_specialize=["rows", "k"])
def _abs_topk(
    x,
    y,
    kept,  # (rows, cdiv(width, 8))
    rows,
    width,
    k,
    INFINITY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    cut, ties = cut_rows(x, row, rows, width, k, INFINITY, BLOCK_R, BLOCK_W, WIDE)
    row_bytes = tl.cdiv(width, 8)
    seen = tl.zeros((BLOCK_R,), tl.int32)  # entries equal to the cut so far
    for start in range(0, width, CHUNK):
        j = start + tl.arange(0, CHUNK)[None, :]
        live = (row < rows)[:, None] & (j < width)
        at = row.to(tl.int64)[:, None] * width + j
        bits = tl.load(x + at, mask=live, other=0)
        keys = keys_of(bits, live, INFINITY)
        tied = (keys == cut[:, None]).to(tl.int32)
        rank = seen[:, None] + tl.cumsum(tied, axis=1)
        keep = (keys > cut[:, None]) | ((tied != 0) & (rank <= ties[:, None]))
        tl.store(y + at, tl.where(keep, bits, 0), mask=live)

        eights = tl.reshape(keep.to(tl.int32), (BLOCK_R, CHUNK // 8, 8))
        packed = tl.sum(eights << tl.arange(0, 8)[None, None, :], axis=2)
        byte = start // 8 + tl.arange(0, CHUNK // 8)[None, :]
        tl.store(
            kept + row.to(tl.int64)[:, None] * row_bytes + byte,
            packed.to(tl.uint8),
            mask=(row < rows)[:, None] & (byte < row_bytes),
        )
        seen += tl.sum(tied, axis=1)


def abs_topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest magnitudes of each row, the rest 0, and one bit per entry kept."""
    op = "abs_topk"
    check_dims(op, "x", x)
    bits, infinity = as_bits(op, "x", x.contiguous())
    width = x.shape[-1]
    if not 0 <= k <= width:
        raise RuntimeError(f"{op}: k must be between 0 and the last dimension of x, {width}, got {k}")
    y = torch.empty_like(bits)
    kept = x.new_empty(*x.shape[:-1], triton.cdiv(width, 8), dtype=torch.uint8)
    rows = prod(x.shape[:-1])
    if y.numel() > 0:
        plan = plan_rows(width, x.dtype)
        launch(
            _abs_topk,
            triton.cdiv(rows, plan.block_r),
            bits,
            y,
            kept,
            rows,
            width,
            k,
            INFINITY=infinity,
            BLOCK_R=plan.block_r,
            BLOCK_W=plan.block_w,
            CHUNK=plan.chunk,
            WIDE=plan.wide,
            num_warps=plan.num_warps,
        )
    return y.view(x.dtype), kept


_BYTES_PER_PROGRAM = 256


@triton.jit
def _mask_by_bits(grad, kept, out, total_bytes, width, BLOCK: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row_bytes = tl.cdiv(width, 8)
    eight = tl.arange(0, 8)[None, :]
    j = (byte % row_bytes)[:, None] * 8 + eight
    live = (byte < total_bytes)[:, None] & (j < width)
    at = (byte // row_bytes)[:, None] * width + j
    bits = tl.load(kept + byte, mask=byte < total_bytes, other=0).to(tl.int32)
    keep = ((bits[:, None] >> eight) & 1) != 0
    tl.store(out + at, tl.where(keep, tl.load(grad + at, mask=live, other=0), 0), mask=live)


def abs_topk_backward(grad: Tensor, kept: Tensor) -> Tensor:
    """grad where the bit is set, 0 elsewhere."""
    op = "abs_topk_backward"
    check_dims(op, "grad", grad)
    bits, _ = as_bits(op, "grad", grad.contiguous())
    kept = kept.contiguous()
    width = grad.shape[-1]
    if kept.dtype != torch.uint8 or kept.numel() != prod(grad.shape[:-1]) * triton.cdiv(width, 8):
        raise RuntimeError(f"{op}: kept must hold one bit per element of grad, got shape {shape_of(kept)}")
    out = torch.empty_like(bits)
    if out.numel() > 0:
        programs = triton.cdiv(kept.numel(), _BYTES_PER_PROGRAM)
        launch(_mask_by_bits, programs, bits, kept, out, kept.numel(), width, BLOCK=_BYTES_PER_PROGRAM, num_warps=4)
    return out.view(grad.dtype)
