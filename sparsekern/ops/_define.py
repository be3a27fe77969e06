"""Registers an op with torch: schema, shape function and gradient here, kernels in C++ (csrc/torch/<stem>.cpp)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dtypes import value_dtype, without_autocast

_library = torch.library.Library("sparsekern", "FRAGMENT")


def define(
    schema: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    composite: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define one raw op and return its overload.

    ``fake`` gives outputs without data; ``backward`` with ``setup_context`` the gradient, itself built from ops that
    have one, so that double backward works; ``composite`` an implementation in terms of other ops where the op has
    no kernel of its own.
    """
    _library.define(schema)
    name = f"sparsekern::{schema.partition('(')[0]}"
    torch.library.register_fake(name, fake, lib=_library)
    if composite is not None:
        _library.impl(name, composite, "CompositeExplicitAutograd")
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_library)
    return getattr(torch.ops.sparsekern, name.partition("::")[2]).default


def second_gradients(
    formula: Callable[..., Tensor], saved: Sequence[Tensor | None], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradient of a backward pass, through the op's formula in plain torch: rarely needed, never fast, and not
    differentiable any further.

    Args:
        formula: of the op's inputs, computed in the dtype of values.
        saved: the gradient of its result, then its inputs; those that are None are left out.
        cotangents: of the gradients of the inputs.

    Returns:
        Gradients of what was saved, but for None.
    """
    leaves = [t.detach().requires_grad_() for t in saved if t is not None]
    grad, *inputs = leaves
    wide = value_dtype(grad.dtype)
    with torch.enable_grad(), without_autocast(grad):
        y = formula(*(t.to(wide) for t in inputs)).to(grad.dtype)
        first = torch.autograd.grad(y, inputs, grad, create_graph=True)
        return torch.autograd.grad(first, leaves, cotangents[: len(first)], materialize_grads=True)
