"""``csr_embedding``: rows of a sparse table."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._define import define

if TYPE_CHECKING:
    from ..formats import CSR, ActivePattern


def _fake(ids: Tensor, values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    return values.new_empty(*ids.shape, cols)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, _, crow, col, _ = inputs
    ctx.save_for_backward(ids, crow, col)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, csr_embedding_backward_raw(grad, *ctx.saved_tensors), None, None, None


def _backward_fake(grad: Tensor, ids: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return grad.new_empty(col.shape[0])


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, *rest = inputs
    ctx.save_for_backward(*rest)
    ctx.cols = grad.shape[-1]


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ids, crow, col = ctx.saved_tensors
    return _forward_raw(ids, grad.contiguous(), crow, col, ctx.cols), None, None, None


_forward_raw = define(
    "csr_embedding(Tensor ids, Tensor values, Tensor crow, Tensor col, SymInt cols) -> Tensor",
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)
csr_embedding_backward_raw = define(
    "csr_embedding_backward(Tensor grad, Tensor ids, Tensor crow, Tensor col) -> Tensor",
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_backward,
)


def csr_embedding(ids: Tensor, w: "CSR") -> Tensor:
    """Rows ``ids`` of the sparse table ``w``, written dense.

    Args:
        ids: (...), int64, each in [0, V).
        w: sparse (V, D), float32 or float64.

    Returns:
        (..., D), with a gradient to ``w.values`` (summed in the order of the tokens).

    Raises:
        RuntimeError: an id is out of range (on a GPU a device-side assertion), or a dtype does not fit.
    """
    return _forward_raw(ids, w.values, w.pattern.crow_indices, w.pattern.col_indices, w.shape[1])


def csr_embedding_active(ids: Tensor, active: Tensor, pattern: "ActivePattern") -> Tensor:
    """``csr_embedding`` with a gradient for all active positions; ``active`` must be 0 outside of the support."""
    return _forward_raw(ids, active, pattern.crow_indices, pattern.col_indices, pattern.shape[1])
