"""The ops under a benchmark: linear layers, selection in activations, embeddings.

Every contender reads row-major activations and writes row-major ones. Inputs are drawn anew for every case.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats import CSR
from ..ops import reference
from .measure import (
    COPY,
    DENSE,
    DTYPES,
    Case,
    Problem,
    assert_close,
    assert_written,
    copy_of,
    implementations,
    sample,
)

# ---- linear layers


def build_linear(case: Case, device: torch.device, backward: bool) -> Problem:
    """x (T, K) -> y (T, N); with ``backward`` also the gradients of x and of the weight."""
    dtype = DTYPES[case.dtype]
    generator = torch.Generator(device)
    generator.seed()
    w = CSR.random(case.n, case.k, density=case.density, generator=generator)
    x = torch.randn(case.tokens, case.k, device=device, dtype=dtype)
    grad = torch.randn(case.tokens, case.n, device=device, dtype=dtype) if backward else None
    moved = case.tokens * ((2 * case.n + 3 * case.k) if backward else (case.n + case.k)) * dtype.itemsize

    contenders: dict[str, Callable[[], Any]] = {COPY: copy_of(moved, device)}
    contenders[DENSE] = dense_linear(x, grad, w.to_dense().to(dtype))
    x32, grad32 = x.float(), None if grad is None else grad.float()
    if dtype != torch.float32:
        contenders["dense f32"] = dense_linear(x32, grad32, w.to_dense())
    if case.density <= 0.02:  # it takes longer than everything else together
        contenders["torch.sparse f32"] = torch_sparse_linear(x32, grad32, w)
    for name, ops in implementations(device).items():
        contenders[name] = our_linear(x, grad, w, ops)

    tokens, positions = sample(case.tokens, device), sample(w.nnz, device)
    row, col = reference.row_indices(w.pattern)[positions], w.col_indices[positions].long()
    dense64 = w.to_dense().double()
    y64 = x[tokens].double() @ dense64.T
    if grad is not None:
        dx64 = grad[tokens].double() @ dense64
        dvalues64 = (grad[:, row].double() * x[:, col].double()).sum(0)

    def check(result: Any) -> None:
        y, *gradients = result if backward else (result,)
        assert_close(y[tokens], y64)
        assert_written(y)
        if gradients:
            dx, dw = gradients
            assert_close(dx[tokens], dx64)
            assert_close(dw[positions] if dw.dim() == 1 else dw[row, col], dvalues64)
            assert_written(dx)
            assert_written(dw)

    return Problem(contenders, check, baseline="torch.sparse f32")


def dense_linear(x: Tensor, grad: Tensor | None, w: Tensor) -> Callable[[], Any]:
    if grad is None:
        return lambda: F.linear(x, w)
    return lambda: (F.linear(x, w), grad @ w, grad.T @ x)


def torch_sparse_linear(x: Tensor, grad: Tensor | None, w: CSR) -> Callable[[], Any]:
    forward = w.to_torch()
    if grad is None:
        return lambda: F.linear(x, forward)
    transposed = w.transpose().to_torch()
    zeros = CSR(torch.zeros_like(w.values), w.pattern).to_torch()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        dvalues = torch.sparse.sampled_addmm(zeros, grad.T, x, beta=0).values()
        return F.linear(x, forward), F.linear(grad, transposed), dvalues

    return run


def our_linear(x: Tensor, grad: Tensor | None, w: CSR, ops: Mapping[str, Callable[..., Any]]) -> Callable[[], Any]:
    pattern = w.pattern.tensors
    if grad is None:
        return lambda: ops["csr_linear"](x, w.values, *pattern, None, False)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        y = ops["csr_linear"](x, w.values, *pattern, None, False)
        return y, *ops["csr_linear_backward"](grad, x, w.values, *pattern)

    return run


# ---- activations


def build_abs_topk(case: Case, device: torch.device) -> Problem:
    """The largest magnitudes of every row of x (T, K)."""
    dtype = DTYPES[case.dtype]
    x = torch.randn(case.tokens, case.k, device=device, dtype=dtype)
    kept = int(case.density * case.k)

    def torch_topk() -> Tensor:
        index = x.abs().topk(kept, dim=-1, sorted=False).indices
        return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index))

    contenders: dict[str, Callable[[], Any]] = {COPY: copy_of(2 * x.numel() * dtype.itemsize, device)}
    contenders["torch.topk"] = torch_topk
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["abs_topk"], x, kept)

    rows = sample(case.tokens, device)
    largest = x[rows].abs().sort(dim=-1, descending=True).values[:, :kept]

    def check(result: Any) -> None:
        whole = result[0] if isinstance(result, tuple) else result  # ours gives the bits of what it kept, too
        y = whole[rows]
        assert ((y == x[rows]) | (y == 0)).all(), "an entry was changed"
        magnitudes = y.abs().sort(dim=-1, descending=True).values  # torch may keep others of equal magnitude
        assert torch.equal(magnitudes[:, :kept], largest), "not the largest"
        assert (magnitudes[:, kept:] == 0).all(), "too many kept"
        assert_written(whole)

    return Problem(contenders, check, baseline="torch.topk")


def build_abs_topk_backward(case: Case, device: torch.device) -> Problem:
    """The gradient where an entry was kept, 0 elsewhere."""
    dtype = DTYPES[case.dtype]
    x, grad = (torch.randn(case.tokens, case.k, device=device, dtype=dtype) for _ in range(2))
    y, bits = torch.ops.sparsekern.abs_topk(x, int(case.density * case.k))
    mask = y != 0
    expected = torch.where(mask, grad, 0)

    contenders: dict[str, Callable[[], Any]] = {COPY: copy_of(2 * x.numel() * dtype.itemsize, device)}
    contenders["torch.where"] = lambda: torch.where(mask, grad, 0)
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["abs_topk_backward"], grad, bits)

    def check(result: Tensor) -> None:
        assert torch.equal(result, expected), "not the masked gradient"

    return Problem(contenders, check, baseline="torch.where")


# ---- embeddings


def table_of(case: Case, device: torch.device) -> tuple[CSR, Tensor]:
    """An (N, K) float32 table, and T ids."""
    generator = torch.Generator(device)
    generator.seed()
    w = CSR.random(case.n, case.k, density=case.density, generator=generator)
    return w, torch.randint(case.n, (case.tokens,), device=device)


def build_embedding(case: Case, device: torch.device) -> Problem:
    """Rows of a table."""
    w, ids = table_of(case, device)
    table = w.to_dense()
    contenders: dict[str, Callable[[], Any]] = {COPY: copy_of(case.tokens * case.k * 4, device)}
    contenders[DENSE] = lambda: F.embedding(ids, table)
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["csr_embedding"], ids, w.values, w.crow_indices, w.col_indices, case.k)

    def check(result: Tensor) -> None:
        assert torch.equal(result, table[ids]), "not the rows of the table"

    return Problem(contenders, check, baseline=DENSE)


def build_embedding_backward(case: Case, device: torch.device) -> Problem:
    """The gradient of the table's values; of a dense table all of it."""
    w, ids = table_of(case, device)
    grad = torch.randn(case.tokens, case.k, device=device)
    contenders: dict[str, Callable[[], Any]] = {COPY: copy_of(case.tokens * case.k * 4, device)}
    contenders[DENSE] = lambda: torch.ops.aten.embedding_dense_backward(grad, ids, case.n, -1, False)
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["csr_embedding_backward"], grad, ids, w.crow_indices, w.col_indices)

    expected = torch.zeros(case.n, case.k, device=device, dtype=torch.float64).index_add_(0, ids, grad.double())
    at = reference.row_indices(w.pattern), w.col_indices.long()

    def check(result: Tensor) -> None:
        assert_close(result, expected if result.dim() == 2 else expected[at])

    return Problem(contenders, check, baseline=DENSE)
