"""The functions of ``circuit_sparsity.inference.kernels``, whose release is a stand-in in plain torch, on real kernels.

``from sparsekern.compat import circuit_sparsity_kernels as kernels`` takes the place of theirs. Indices are flat, in
row-major order, as there; sparse matrices are ``torch.sparse_coo_tensor``. Ties go to the lowest index.
"""

import torch
from torch import Tensor

from ..formats import CSR
from ..ops import csr_linear
from ..ops.topk_project import topk_select

# Approximate selection looks at every entry once, in so many strided buckets, and takes so many times a bucket's share.
BUCKETS = 1024
OVERSAMPLING = 2


def sample_top_k(n: int, k: int, shape: tuple[int, ...]) -> Tensor:
    """The ``k`` largest magnitudes, (k,), of ``n`` standard normal numbers; ``shape`` is not used, as there."""
    x = torch.randn(n)
    return topk(x.view(1, n), k, abs=True)[0]


def dense_to_sparse_topk(
    x: Tensor, k: int, scores: Tensor | None = None, abs: bool = True, exact: bool = False
) -> Tensor:
    """The largest entries of ``x`` (N, K) as a COO matrix of exactly ``k`` entries.

    Args:
        scores: (N, K), by which to choose, and whose values are taken, as there; ``x`` by default.
        abs: by magnitude.
        exact: see :func:`topk`.

    Raises:
        ValueError: ``scores`` has another shape, or ``k`` is above the number of entries.
    """
    scores = x.detach() if scores is None else scores
    if scores.shape != x.shape:
        raise ValueError(f"scores must have shape {tuple(x.shape)}, got {tuple(scores.shape)}")
    if k > x.numel():
        raise ValueError(f"k must be at most the {x.numel()} entries, got {k}")
    values, flat = topk(scores, k, abs=abs, exact=exact)
    return torch.sparse_coo_tensor(torch.stack([flat // x.shape[1], flat % x.shape[1]]), values, x.shape)


def topk(x: Tensor, k: int, abs: bool = False, exact: bool = True, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Values and flat indices, (k,) each, of the largest entries of a matrix, in no order that means anything.

    Args:
        x: (N, K).
        k: how many; all of them if there are not more.
        abs: by magnitude; the values keep their signs.
        exact: False lets a few of the smallest be missed for others almost as large.
        dim: 0 takes the ``k / K`` largest of every column, 1 the ``k / N`` largest of every row.

    Raises:
        ValueError: ``dim`` is not None, 0 or 1, or ``k`` cannot be shared evenly.
    """
    k = min(k, x.numel())
    score = x.detach().abs() if abs else x.detach()
    if dim is not None:
        flat = _top_of_each(score, k, dim)
    elif exact:
        flat = _top_of_all(x.detach(), k) if abs else score.flatten().topk(k, sorted=False).indices
    else:
        flat = _nearly_top(score.flatten(), k)
    return x.flatten()[flat], flat


def _top_of_all(x: Tensor, k: int) -> Tensor:
    crow, col = topk_select(x.view(-1, x.shape[-1]), k)
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=x.device), crow.long().diff())
    return rows * x.shape[-1] + col


def _top_of_each(score: Tensor, k: int, dim: int) -> Tensor:
    if dim not in (0, 1):
        raise ValueError(f"dim must be None, 0 or 1, got {dim}")
    n, width = score.shape
    lines = width if dim == 0 else n
    if k % max(1, lines):
        raise ValueError(f"k must be a multiple of the {lines} {'columns' if dim == 0 else 'rows'}, got {k}")
    found = score.topk(k // max(1, lines), dim=dim, sorted=False).indices
    across = torch.arange(lines, device=score.device)
    return (found * width + across if dim == 0 else found + across[:, None] * width).flatten()


def _nearly_top(score: Tensor, k: int) -> Tensor:
    """The largest of the largest of each bucket; a bucket holds every so manyth entry, so none is a row of a matrix."""
    share = OVERSAMPLING * -(-k // BUCKETS)
    length = -(-score.numel() // BUCKETS)
    if share >= length:
        return score.topk(k, sorted=False).indices
    padded = torch.nn.functional.pad(score, (0, length * BUCKETS - score.numel()), value=-torch.inf)
    places = padded.view(length, BUCKETS).topk(share, dim=0, sorted=False).indices
    flat = (places * BUCKETS + torch.arange(BUCKETS, device=score.device)).flatten()
    flat = flat[flat < score.numel()]
    return flat[score[flat].topk(k, sorted=False).indices]


def coo_dense_sparse_T_matmul(dense: Tensor, sparse_T: Tensor, impl: str) -> Tensor:
    """``dense @ sparse_T.T`` at the cost of the nonzeros: (..., K) and a COO (N, K) -> (..., N); ``impl`` is not used.

    Gradients reach ``dense``, and the values of ``sparse_T`` where it is coalesced.
    """
    sparse_T = sparse_T.coalesce()
    rows, columns = sparse_T.indices()
    crow = torch.zeros(sparse_T.shape[0] + 1, dtype=torch.int64, device=rows.device)
    crow[1:] = torch.bincount(rows, minlength=sparse_T.shape[0]).cumsum(0)
    values = sparse_T.values().to(torch.float64 if dense.dtype == torch.float64 else torch.float32)
    n, k = sparse_T.shape
    return csr_linear(dense, CSR.from_parts(crow, columns, values, (n, k)))


def naive_torch_coo_dense_sparse_T_matmul(dense: Tensor, sparse_T: Tensor) -> Tensor:
    """The same, computed densely in float32 by torch, to compare with."""
    return (dense.float() @ sparse_T.coalesce().to_dense().float().T).to(dense.dtype)
