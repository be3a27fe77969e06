"""Selection by magnitude on the bits of floats: without the sign they order like absolute values.

All NaNs are one magnitude just above infinity.  Kernels take the bits as integers and never do arithmetic on floats.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_float

# dtype -> the integers of its width, and the bits of infinity
_BITS = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


def as_bits(op: str, name: str, x: Tensor) -> tuple[Tensor, int]:
    """The bits of a contiguous x, sharing its storage, and those of infinity."""
    check_float(op, name, x)
    integers, infinity = _BITS[x.dtype]
    return x.view(integers), infinity


@triton.jit
def keys_of(bits, live, INFINITY: tl.constexpr):
    """Magnitudes as int32, or int64 for 64 bits; -1, below every magnitude, where not ``live``."""
    WIDTH: tl.constexpr = bits.dtype.primitive_bitwidth
    wide = bits if WIDTH == 64 else bits.to(tl.int32)
    return tl.where(live, tl.minimum(wide & (2 ** (WIDTH - 1) - 1), INFINITY + 1), -1)


@triton.jit
def load_row_keys(x, row, rows, start, width, INFINITY: tl.constexpr, BLOCK_W: tl.constexpr):
    """Keys of entries start .. start + BLOCK_W - 1 of each of the given rows of x (rows, width)."""
    j = start + tl.arange(0, BLOCK_W)[None, :]
    live = (row < rows)[:, None] & (j < width)
    return keys_of(tl.load(x + row.to(tl.int64)[:, None] * width + j, mask=live, other=0), live, INFINITY)


@triton.jit
def cut_rows(
    x,
    row,
    rows,
    width,
    k,
    INFINITY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    WIDE: tl.constexpr,
):
    """(cut, ties) of each row: its k largest are the keys above cut and the first ``ties`` of those equal to it.

    The cut is found bit by bit, from the highest: it is the largest key that at least k entries reach.  The row stays
    in registers meanwhile, or is read again for every bit where it does not fit (WIDE).
    """
    BITS: tl.constexpr = x.dtype.element_ty.primitive_bitwidth - 1
    keys = load_row_keys(x, row, rows, 0, width, INFINITY, BLOCK_W)
    cut = tl.zeros((BLOCK_R,), keys.dtype)
    above = tl.zeros((BLOCK_R,), tl.int32)
    for i in range(BITS):
        candidate = cut | (tl.full((BLOCK_R,), 1, keys.dtype) << (BITS - 1 - i))
        reaching = tl.sum((keys >= candidate[:, None]).to(tl.int32), axis=1)
        if WIDE:
            for start in range(BLOCK_W, width, BLOCK_W):
                more = load_row_keys(x, row, rows, start, width, INFINITY, BLOCK_W)
                reaching += tl.sum((more >= candidate[:, None]).to(tl.int32), axis=1)
        cut = tl.where(reaching >= k, candidate, cut)
        above = tl.where(reaching >= k, above, reaching)  # the last candidate too high is cut + 1
    return cut, k - above
