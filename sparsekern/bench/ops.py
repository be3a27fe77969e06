"""The ops under a benchmark: selection in activations, embeddings, attention.

Inputs are drawn anew for every case.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats import CSR
from ..ops import reference
from ..ops.causal_attention import by_torch, causal_attention
from .measure import DENSE, DTYPES, Case, Problem, Work, assert_close, assert_written, implementations, sample

CONTEXT = 256  # tokens of a sequence

# ---- activations


def build_abs_topk(case: Case, device: torch.device) -> Problem:
    """The largest magnitudes of every row of x (T, K)."""
    dtype = DTYPES[case.dtype]
    x = torch.randn(case.tokens, case.k, device=device, dtype=dtype)
    kept = int(case.density * case.k)

    def scattered(index: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index))

    def kth_value() -> Tensor:
        magnitude = x.abs()
        return x * (magnitude >= magnitude.kthvalue(case.k - kept + 1, dim=-1, keepdim=True).values)

    contenders: dict[str, Callable[[], Any]] = {
        "torch.topk": lambda: scattered(x.abs().topk(kept, dim=-1, sorted=False).indices)
    }
    if device.type == "cpu":  # a GPU has so many tokens that these take their time
        contenders["torch.kthvalue"] = kth_value
        contenders["torch.sort"] = lambda: scattered(x.abs().sort(dim=-1, descending=True).indices[:, :kept])
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
        more = magnitudes[:, kept:]  # as large as the least, where only that was compared with
        assert ((more == 0) | (more == largest[:, -1:])).all(), "too many kept"
        assert_written(whole)

    return Problem(contenders, check, baseline="torch.topk", work=Work(2 * x.numel() * dtype.itemsize))


def build_abs_topk_backward(case: Case, device: torch.device) -> Problem:
    """The gradient where an entry was kept, 0 elsewhere."""
    dtype = DTYPES[case.dtype]
    x, grad = (torch.randn(case.tokens, case.k, device=device, dtype=dtype) for _ in range(2))
    y, bits = torch.ops.sparsekern.abs_topk(x, int(case.density * case.k))
    mask = y != 0
    expected = torch.where(mask, grad, 0)

    contenders: dict[str, Callable[[], Any]] = {"torch.where": lambda: torch.where(mask, grad, 0)}
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["abs_topk_backward"], grad, bits)

    def check(result: Tensor) -> None:
        assert torch.equal(result, expected), "not the masked gradient"

    return Problem(contenders, check, baseline="torch.where", work=Work(2 * x.numel() * dtype.itemsize))


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
    contenders: dict[str, Callable[[], Any]] = {DENSE: lambda: F.embedding(ids, table)}
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["csr_embedding"], ids, w.values, w.crow_indices, w.col_indices, case.k)

    def check(result: Tensor) -> None:
        assert torch.equal(result, table[ids]), "not the rows of the table"

    return Problem(contenders, check, baseline=DENSE, work=Work(4 * case.tokens * case.k))


def build_embedding_backward(case: Case, device: torch.device) -> Problem:
    """The gradient of the table's values; of a dense table all of it."""
    w, ids = table_of(case, device)
    grad = torch.randn(case.tokens, case.k, device=device)
    contenders: dict[str, Callable[[], Any]] = {
        DENSE: lambda: torch.ops.aten.embedding_dense_backward(grad, ids, case.n, -1, False)
    }
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["csr_embedding_backward"], grad, ids, w.crow_indices, w.col_indices)

    expected = torch.zeros(case.n, case.k, device=device, dtype=torch.float64).index_add_(0, ids, grad.double())
    at = reference.row_indices(w.pattern), w.col_indices.long()

    def check(result: Tensor) -> None:
        assert_close(result, expected if result.dim() == 2 else expected[at])

    return Problem(contenders, check, baseline=DENSE, work=Work(4 * case.tokens * case.k))


# ---- attention


def build_attention(case: Case, device: torch.device, backward: bool) -> Problem:
    """q, k, v (B, T, H, D): N = H heads, K = D wide, sequences of 256 tokens; with ``backward`` also the gradients."""
    context = min(CONTEXT, case.tokens)
    shape = (case.tokens // context, context, case.n, case.k)
    q, k, v, grad = (torch.randn(shape, device=device, dtype=DTYPES[case.dtype]) for _ in range(4))

    def through(attention: Callable[..., Tensor], dtype: torch.dtype) -> Callable[[], Any]:
        inputs = [t.to(dtype) for t in (q, k, v)]
        if not backward:
            return lambda: attention(*inputs)
        leaves, out_grad = [t.detach().clone().requires_grad_() for t in inputs], grad.to(dtype)

        def run() -> tuple[Tensor, ...]:
            with torch.enable_grad():
                y = attention(*leaves)
                return y.detach(), *torch.autograd.grad(y, leaves, out_grad)

        return run

    sdpa = partial(by_torch, sink=None)
    contenders = {f"torch SDPA {name}": through(sdpa, dtype) for name, dtype in DTYPES.items()}
    (ours,) = list(implementations(device))[:1]
    contenders[ours] = through(causal_attention, q.dtype)

    with torch.enable_grad():
        exact = [t[:1].double().requires_grad_() for t in (q, k, v)]
        y = reference.causal_attention(*exact)
        expected = [y.detach(), *torch.autograd.grad(y, exact, grad[:1].double())]

    def check(result: Any) -> None:
        results = result if backward else (result,)
        for actual, wanted in zip(results, expected, strict=False):
            assert_close(actual[:1], wanted)
            assert_written(actual)

    product = case.tokens * context * case.n * case.k  # half of it is hidden; forward has two, backward five
    work = Work((12 if backward else 4) * q.nbytes, (7 if backward else 2) * product)
    return Problem(contenders, check, baseline="torch SDPA", work=work)
