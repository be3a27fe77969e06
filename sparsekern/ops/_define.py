"""Registers an op with torch: schema, shape function and gradient here, kernels in C++ (csrc/torch/<stem>.cpp)."""

from collections.abc import Callable
from typing import Any

import torch

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
