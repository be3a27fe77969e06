"""Checks that name the argument, in the words of ``csrc/torch/common.h``."""

import torch
from torch import Tensor

from ..ops.bsr_linear import BLOCK_SIDES

# dtype of activations -> dtype of the values, bias and sums that go with them
VALUE_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
_SCALAR_TYPES = {
    torch.float32: "Float",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.float64: "Double",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.uint8: "Byte",
}


def scalar_type(t: Tensor) -> str:
    return _SCALAR_TYPES.get(t.dtype, str(t.dtype))


def shape_of(t: Tensor) -> str:
    return f"({', '.join(map(str, t.shape))})"


def check_float(op: str, name: str, t: Tensor) -> None:
    if t.dtype not in VALUE_DTYPES:
        raise RuntimeError(
            f"{op}: {name} must be float32, bfloat16, float16 or float64, got scalar type {scalar_type(t)}"
        )


def check_dims(op: str, name: str, t: Tensor) -> None:
    if t.dim() < 1:
        raise RuntimeError(f"{op}: {name} must have at least one dimension")


def check_features(op: str, name: str, t: Tensor, features: int) -> None:
    if t.shape[-1] != features:
        raise RuntimeError(f"{op}: {name} must have {features} features in its last dimension, got shape {shape_of(t)}")


def check_vector(op: str, name: str, t: Tensor, dtype: torch.dtype, length: int) -> None:
    """A contiguous vector of exactly ``length`` elements of ``dtype``."""
    if t.dim() != 1 or t.shape[0] != length or not t.is_contiguous():
        raise RuntimeError(f"{op}: {name} must be a contiguous vector of {length} elements, got shape {shape_of(t)}")
    if t.dtype != dtype:
        raise RuntimeError(f"{op}: {name} must have scalar type {_SCALAR_TYPES[dtype]}, got {scalar_type(t)}")


def check_pattern(op: str, crow: Tensor, col: Tensor) -> None:
    """The arrays of a pattern; their contents were validated when the format object was made."""
    if crow.dtype not in (torch.int32, torch.int64):
        raise RuntimeError(f"{op}: crow_indices must be int32 or int64, got scalar type {scalar_type(crow)}")
    if crow.numel() < 1:
        raise RuntimeError(f"{op}: crow_indices must have at least one element")
    check_vector(op, "crow_indices", crow, crow.dtype, crow.numel())
    check_vector(op, "col_indices", col, crow.dtype, col.numel())


def check_side(op: str, name: str, side: int) -> None:
    if side not in BLOCK_SIDES:
        raise RuntimeError(f"{op}: {name} must be one of {', '.join(map(str, BLOCK_SIDES))}, got {side}")


def check_blocks(op: str, name: str, t: Tensor, dtype: torch.dtype, count: int) -> None:
    """``count`` blocks of any allowed sides."""
    if t.dim() != 3 or t.shape[0] != count:
        raise RuntimeError(f"{op}: {name} must be {count} blocks, got shape {shape_of(t)}")
    check_side(op, "block_rows", t.shape[1])
    check_side(op, "block_cols", t.shape[2])
    if t.dtype != dtype:
        raise RuntimeError(f"{op}: {name} must have scalar type {_SCALAR_TYPES[dtype]}, got {scalar_type(t)}")


def check_grid(op: str, name: str, features: int, parts: int, block: int) -> None:
    """``features`` are cut into exactly ``parts`` blocks."""
    if not (parts - 1) * block < features <= parts * block:
        raise RuntimeError(f"{op}: {name} must fill {parts} blocks of {block}, got {features}")
