"""``topk_project_``: the magnitude of the k-th largest entry by digits, then the pattern row by row.

Nothing waits for the GPU: counts and cuts stay in device memory and every shape follows from the arguments, so a call
can be captured in a CUDA graph.  A NaN cannot be refused without waiting: it counts as the largest magnitude and is
kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.status import NO_NAN
from .abs_topk import plan_rows
from .checks import shape_of
from .launch import launch
from .magnitude import as_bits, cut_rows, keys_of

_DIGIT_BITS = 8  # more would make the histogram dearer than reading the weight, fewer would read it more often
_PROGRAMS = 1024  # that share the counting of a weight: a few per multiprocessor


@dataclass(frozen=True)
class ProjectPlan:
    """The tile of the weight that a program judges at a time."""

    block_r: int
    block_c: int
    num_warps: int


def plan_project(rows: int, cols: int) -> ProjectPlan:
    block_c = min(triton.next_power_of_2(cols), 2048)
    block_r = min(triton.next_power_of_2(rows), 2048 // block_c)
    # 8 entries per thread: what is counted and scanned of each stays in few registers
    return ProjectPlan(block_r, block_c, max(1, block_r * block_c // (32 * 8)))


@triton.jit(do_not_specialize=["rows", "floor"])
def _cut_neurons(
    x,  # (rows, width)
    cuts,
    lasts,
    rows,
    width,
    floor,
    INFINITY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The ``floor`` largest of each row: those above its cut, and those equal to it up to the index ``last``."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    cut, ties = cut_rows(x, row, rows, width, floor, INFINITY, BLOCK_R, BLOCK_W, WIDE)
    last = tl.full((BLOCK_R,), -1, tl.int32)
    seen = tl.zeros((BLOCK_R,), tl.int32)
    for start in range(0, width, CHUNK):
        j = start + tl.arange(0, CHUNK)[None, :]
        live = (row < rows)[:, None] & (j < width)
        keys = keys_of(tl.load(x + row.to(tl.int64)[:, None] * width + j, mask=live, other=0), live, INFINITY)
        tied = (keys == cut[:, None]).to(tl.int32)
        rank = seen[:, None] + tl.cumsum(tied, axis=1)
        last = tl.maximum(last, tl.max(tl.where((tied != 0) & (rank <= ties[:, None]), j, -1), axis=1))
        seen += tl.sum(tied, axis=1)
    tl.store(cuts + row, cut, mask=row < rows)
    tl.store(lasts + row, last, mask=row < rows)


@triton.jit
def _load_tile(weight, cuts, lasts, row, j, rows, cols, INFINITY: tl.constexpr, AXIS: tl.constexpr):
    """Bits and keys of a tile, and which of its entries the floor reserves."""
    live = (row < rows)[:, None] & (j < cols)[None, :]
    bits = tl.load(weight + row.to(tl.int64)[:, None] * cols + j[None, :], mask=live, other=0)
    keys = keys_of(bits, live, INFINITY)
    reserved = live & False
    if cuts is not None:
        if AXIS == 0:
            cut = tl.load(cuts + row, mask=row < rows, other=0)[:, None]
            last = tl.load(lasts + row, mask=row < rows, other=0)[:, None]
            index = j[None, :]
        else:
            cut = tl.load(cuts + j, mask=j < cols, other=0)[None, :]
            last = tl.load(lasts + j, mask=j < cols, other=0)[None, :]
            index = row[:, None]
        reserved = (keys > cut) | ((keys == cut) & (index <= last))
    return bits, keys, reserved


@triton.jit(do_not_specialize=["shift", "digit"])
def _count_digits(
    weight,
    cuts,
    lasts,
    found,
    histogram,
    rows,
    cols,
    shift,
    digit,
    BINS: tl.constexpr,
    INFINITY: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds to the histogram the next ``digit`` bits of all keys that begin with the bits found, reserved ones aside."""
    prefix = tl.load(found)
    counts = tl.zeros((BINS,), tl.int32)
    col_tiles = tl.cdiv(cols, BLOCK_C)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R) * col_tiles, tl.num_programs(0)):
        row = (tile // col_tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
        j = (tile % col_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
        _, keys, reserved = _load_tile(weight, cuts, lasts, row, j, rows, cols, INFINITY, AXIS)
        rest = keys >> shift
        counted = ((rest >> digit) == prefix.to(keys.dtype)) & ~reserved
        value = (rest & ((1 << digit) - 1)).to(tl.int32)
        counts += tl.histogram(tl.ravel(value), BINS, mask=tl.ravel(counted))
    tl.atomic_add(histogram + tl.arange(0, BINS), counts.to(tl.int64), mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["digit"])
def _find_digit(found, histogram, digit, BINS: tl.constexpr):
    """Appends to the bits found the largest digit that the budget reaches; leaves the budget for keys that have it."""
    prefix = tl.load(found)
    budget = tl.load(found + 1)
    d = tl.arange(0, BINS)
    count = tl.load(histogram + d)
    reaching = tl.sum(count, axis=0) - tl.cumsum(count, axis=0) + count
    largest = tl.max(tl.where(reaching >= budget, d, 0), axis=0)
    tl.store(found, (prefix << digit) | largest)
    tl.store(found + 1, budget - tl.sum(tl.where(d > largest, count, 0), axis=0))


@triton.jit
def _judge(weight, cuts, lasts, cut, row, j, rows, cols, INFINITY: tl.constexpr, AXIS: tl.constexpr):
    """Bits of a tile, its entries kept for certain, and (as 0 or 1) those equal to the cut."""
    bits, keys, reserved = _load_tile(weight, cuts, lasts, row, j, rows, cols, INFINITY, AXIS)
    cut = cut.to(keys.dtype)
    return bits, reserved | (keys > cut), ((keys == cut) & ~reserved).to(tl.int32)


@triton.jit
def _count_rows(
    weight,
    cuts,
    lasts,
    found,
    kept,
    tied,
    rows,
    cols,
    INFINITY: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    cut = tl.load(found)
    kept_count = tl.zeros((BLOCK_R,), tl.int32)
    tied_count = tl.zeros((BLOCK_R,), tl.int32)
    for start in range(0, cols, BLOCK_C):
        j = start + tl.arange(0, BLOCK_C)
        _, certain, equal = _judge(weight, cuts, lasts, cut, row, j, rows, cols, INFINITY, AXIS)
        kept_count += tl.sum(certain.to(tl.int32), axis=1)
        tied_count += tl.sum(equal, axis=1)
    tl.store(kept + row, kept_count, mask=row < rows)
    tl.store(tied + row, tied_count, mask=row < rows)


@triton.jit
def _write_rows(
    weight,
    cuts,
    lasts,
    found,
    crow,
    ties,  # (rows) how many of the entries equal to the cut each row keeps
    col,
    rows,
    cols,
    INFINITY: tl.constexpr,
    AXIS: tl.constexpr,
    ZERO_REST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    cut = tl.load(found)
    place = tl.load(crow + row, mask=row < rows, other=0).to(tl.int64)
    ties_left = tl.load(ties + row, mask=row < rows, other=0)
    for start in range(0, cols, BLOCK_C):
        j = start + tl.arange(0, BLOCK_C)
        bits, certain, equal = _judge(weight, cuts, lasts, cut, row, j, rows, cols, INFINITY, AXIS)
        keep = certain | ((equal != 0) & (tl.cumsum(equal, axis=1) <= ties_left[:, None]))
        ones = keep.to(tl.int32)
        column = (j[None, :] + tl.zeros_like(ones)).to(col.dtype.element_ty)
        tl.store(col + place[:, None] + tl.cumsum(ones, axis=1) - 1, column, mask=keep)
        if ZERO_REST:
            live = (row < rows)[:, None] & (j < cols)[None, :]
            tl.store(weight + row.to(tl.int64)[:, None] * cols + j[None, :], tl.where(keep, bits, 0), mask=live)
        place += tl.sum(ones, axis=1)
        ties_left -= tl.sum(equal, axis=1)


def _digits(bits: int) -> Iterator[tuple[int, int]]:
    """(shift, width) of the digits of a key, from the highest."""
    while bits > 0:
        width = min(bits, _DIGIT_BITS)
        bits -= width
        yield bits, width


def _cut_floor(bits: Tensor, infinity: int, floor: int, axis: int) -> tuple[Tensor, Tensor]:
    """Of each row or column: the cut of its ``floor`` largest, and the last index kept of those equal to it."""
    neurons = bits if axis == 0 else bits.T.contiguous()
    rows, width = neurons.shape
    cuts = bits.new_empty(rows, dtype=torch.int64 if bits.dtype == torch.int64 else torch.int32)
    lasts = bits.new_empty(rows, dtype=torch.int32)
    plan = plan_rows(width, bits.dtype)
    launch(
        _cut_neurons,
        triton.cdiv(rows, plan.block_r),
        neurons,
        cuts,
        lasts,
        rows,
        width,
        floor,
        INFINITY=infinity,
        BLOCK_R=plan.block_r,
        BLOCK_W=plan.block_w,
        CHUNK=plan.chunk,
        WIDE=plan.wide,
        num_warps=plan.num_warps,
    )
    return cuts, lasts


def _first_nan(weight: Tensor) -> Tensor:
    """The flat index of the first NaN, an int64 scalar; NO_NAN where there is none."""
    found = weight.new_full((), NO_NAN, dtype=torch.int64)
    if weight.numel() == 0:
        return found
    is_nan = weight.isnan().flatten()
    return torch.where(is_nan.any(), is_nan.int().argmax(), found)


def _select(op: str, weight: Tensor, k: int, floor: int, axis: int, zero_rest: bool) -> tuple[Tensor, Tensor, Tensor]:
    if weight.dim() != 2 or not weight.is_contiguous():
        raise RuntimeError(f"{op}: weight must be a contiguous matrix, got shape {shape_of(weight)}")
    bits, infinity = as_bits(op, "weight", weight)
    rows, cols = weight.shape
    if not 0 <= k <= rows * cols:
        raise RuntimeError(f"{op}: k must be between 0 and {rows * cols}, got {k}")
    if axis not in (0, 1):
        raise RuntimeError(f"{op}: axis must be 0 (rows) or 1 (columns), got {axis}")
    neurons = weight.shape[axis]
    if floor < 0 or floor * neurons > k:
        raise RuntimeError(f"{op}: k must be at least floor * {neurons} = {floor * neurons}, got {k}")

    index = torch.int32 if k < 2**31 else torch.int64
    crow = weight.new_zeros(rows + 1, dtype=index)
    col = weight.new_empty(k, dtype=index)
    nan_at = _first_nan(weight)
    if weight.numel() == 0:
        return crow, col, nan_at
    cuts, lasts = _cut_floor(bits, infinity, floor, axis) if floor > 0 else (None, None)
    plan = plan_project(rows, cols)
    shared = {
        "INFINITY": infinity,
        "AXIS": axis,
        "BLOCK_R": plan.block_r,
        "BLOCK_C": plan.block_c,
        "num_warps": plan.num_warps,
    }
    row_blocks = triton.cdiv(rows, plan.block_r)

    # the cut: the bits of its key found so far, and the budget for keys that begin with them
    found = bits.new_zeros(2, dtype=torch.int64)
    found[1] = k - floor * neurons
    programs = min(_PROGRAMS, row_blocks * triton.cdiv(cols, plan.block_c))
    bins = 2**_DIGIT_BITS
    for shift, digit in _digits(8 * bits.itemsize - 1):
        histogram = bits.new_zeros(bins, dtype=torch.int64)
        launch(
            _count_digits,
            programs,
            bits,
            cuts,
            lasts,
            found,
            histogram,
            rows,
            cols,
            shift,
            digit,
            BINS=bins,
            **shared,
        )
        launch(_find_digit, 1, found, histogram, digit, BINS=bins, num_warps=1)

    # the pattern: rows are counted, entries equal to the cut go to the first rows, then each row is written
    kept = bits.new_empty(rows, dtype=torch.int32)
    tied = torch.empty_like(kept)
    launch(_count_rows, row_blocks, bits, cuts, lasts, found, kept, tied, rows, cols, **shared)
    before = tied.cumsum(0) - tied
    ties = (found[1] - before).clamp(min=0).minimum(tied)
    torch.cumsum(kept + ties, 0, dtype=index, out=crow[1:])
    launch(
        _write_rows,
        row_blocks,
        bits,
        cuts,
        lasts,
        found,
        crow,
        ties,
        col,
        rows,
        cols,
        ZERO_REST=zero_rest,
        **shared,
    )
    return crow, col, nan_at


def topk_project_(weight: Tensor, k: int, floor: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps exactly k entries of weight in place; (crow, col) say which; third, the flat index of the first NaN."""
    return _select("topk_project_", weight, k, floor, axis, zero_rest=True)


def topk_select(weight: Tensor, k: int, floor: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The (crow, col) that topk_project_ would keep, and the first NaN; weight is only read."""
    return _select("topk_select", weight.contiguous(), k, floor, axis, zero_rest=False)
