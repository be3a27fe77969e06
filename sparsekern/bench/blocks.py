"""Linear layers whose weights consist of blocks, under a benchmark."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats import BSR, CSR
from .linear import TORCH_SPARSE, Gradients, activations, dense_linear
from .measure import DENSE, DTYPES, Case, Problem, Work, implementations


def build_blocks(case: Case, device: torch.device, side: int, backward: bool) -> Problem:
    """x (T, K) -> y (T, N); with ``backward`` also the gradients of x and of the weight, which torch.sparse lacks."""
    generator = torch.Generator(device)
    generator.seed()
    w = BSR.random(case.n, case.k, side, density=case.density, generator=generator)
    x, out_grad = activations(case, device)
    grad = out_grad if backward else None
    contenders: dict[str, Callable[[], Any]] = {}
    for name, dtype in DTYPES.items():
        of_dtype = None if grad is None else grad.to(dtype)
        contenders[f"{DENSE} {name}"] = dense_linear(x.to(dtype), of_dtype, w.to_dense().to(dtype))
    if not backward:
        contenders[f"{TORCH_SPARSE} BSR f32"] = partial(F.linear, x.float(), w.to_torch())
    for name, ops in implementations(device).items():
        contenders[name] = our_blocks(x, grad, w, ops)
    exact = Gradients(x, out_grad, CSR.from_torch(w.to_dense()))

    def check(result: Any) -> None:
        y, *gradients = result if backward else (result,)
        exact.check_y(y)
        if gradients:
            dx, dw = gradients
            exact.check_dx(dx)
            exact.check_dw(w.with_values(dw).to_dense() if dw.dim() == 3 else dw)

    e, t, values = x.element_size(), case.tokens, w.values.numel()
    moved = t * (2 * case.n + 3 * case.k) * e + 12 * values if backward else t * (case.n + case.k) * e + 4 * values
    work = Work(moved, (6 if backward else 2) * t * values)
    return Problem(contenders, check, baseline=DENSE if backward else TORCH_SPARSE, work=work)


def our_blocks(x: Tensor, grad: Tensor | None, w: BSR, ops: Mapping[str, Callable[..., Any]]) -> Callable[[], Any]:
    pattern, (n, k) = w.pattern.tensors, w.shape
    if grad is None:
        return lambda: ops["bsr_linear"](x, w.values, *pattern, None, n, False)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        y = ops["bsr_linear"](x, w.values, *pattern, None, n, False)
        dx = ops["bsr_linear"](grad, w.values, *pattern, None, k, True)
        return y, dx, ops["bsr_sddmm"](grad, x, *pattern, *w.block)

    return run
