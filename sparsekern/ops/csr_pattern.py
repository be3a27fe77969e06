"""Raw ops on patterns: validation, transposition, gather from and scatter to a dense matrix."""

from typing import Any

from torch import Tensor

from ._define import define


def _validate_fake(crow: Tensor, col: Tensor, cols: int) -> None:
    return None


def _transpose_fake(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    return crow.new_empty(cols + 1), col.new_empty(col.shape[0]), col.new_empty(col.shape[0])


def _gather_fake(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return dense.new_empty(col.shape[0])


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, crow, col = inputs
    ctx.save_for_backward(crow, col)
    ctx.cols = dense.shape[1]


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    crow, col = ctx.saved_tensors
    return csr_scatter(grad.contiguous(), crow, col, ctx.cols), None, None


def _scatter_fake(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    return values.new_empty(crow.shape[0] - 1, cols)


def _scatter_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, crow, col, _ = inputs
    ctx.save_for_backward(crow, col)


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return csr_gather(grad, *ctx.saved_tensors), None, None, None


csr_validate = define("csr_validate(Tensor crow, Tensor col, SymInt cols) -> ()", fake=_validate_fake)
csr_transpose = define(
    "csr_transpose(Tensor crow, Tensor col, SymInt cols) -> (Tensor ccol, Tensor row, Tensor perm)",
    fake=_transpose_fake,
)
csr_gather = define(
    "csr_gather(Tensor dense, Tensor crow, Tensor col) -> Tensor",
    fake=_gather_fake,
    setup_context=_gather_setup,
    backward=_gather_backward,
)
csr_scatter = define(
    "csr_scatter(Tensor values, Tensor crow, Tensor col, SymInt cols) -> Tensor",
    fake=_scatter_fake,
    setup_context=_scatter_setup,
    backward=_scatter_backward,
)
