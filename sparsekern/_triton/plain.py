"""Raw ops in plain torch, for any device: patterns and embeddings.

None waits for the GPU: shapes follow from the arguments.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.reference import as_matrix
from .checks import check_float, check_pattern, check_vector, scalar_type, shape_of


def row_indices(crow: Tensor, col: Tensor) -> Tensor:
    """(nnz) int64: the row of every position, by search because the counts of rows are on the device."""
    positions = torch.arange(col.shape[0], dtype=crow.dtype, device=crow.device)
    return torch.searchsorted(crow, positions, right=True) - 1


def csr_transpose(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ccol, row, perm): positions sorted by column, in the order of rows within each."""
    check_pattern("csr_transpose", crow, col)
    by_column, perm = torch.sort(col, stable=True)
    ends = torch.arange(cols + 1, dtype=col.dtype, device=col.device)
    ccol = torch.searchsorted(by_column, ends)
    return ccol.to(col.dtype), row_indices(crow, col)[perm].to(col.dtype), perm.to(col.dtype)


def csr_gather(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """values[p] = dense[row p, col p]."""
    op = "csr_gather"
    check_float(op, "dense", dense)
    if dense.dim() != 2 or dense.shape[0] != crow.numel() - 1:
        raise RuntimeError(f"{op}: dense must be a matrix of {crow.numel() - 1} rows, got shape {shape_of(dense)}")
    check_pattern(op, crow, col)
    return dense[row_indices(crow, col), col.long()]


def csr_scatter(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """dense[row p, col p] = values[p], zero elsewhere."""
    op = "csr_scatter"
    check_float(op, "values", values)
    check_pattern(op, crow, col)
    check_vector(op, "values", values, values.dtype, col.shape[0])
    dense = values.new_zeros(crow.shape[0] - 1, cols)
    dense[row_indices(crow, col), col.long()] = values
    return dense


def _check_ids(op: str, ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise RuntimeError(f"{op}: ids must be int64, got scalar type {scalar_type(ids)}")


def csr_embedding(ids: Tensor, values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Rows ``ids`` of the table, by way of the dense table; torch refuses ids out of range where it reads them."""
    _check_ids("csr_embedding", ids)
    table = csr_scatter(values, crow, col, cols)
    return table.index_select(0, ids.flatten()).view(*ids.shape, cols)


def csr_embedding_backward(grad: Tensor, ids: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """out[p] = sum of grad[t, col p] over the tokens t of row p, in the order of t: no atomics, always the same."""
    op = "csr_embedding_backward"
    check_float(op, "grad", grad)
    check_pattern(op, crow, col)
    _check_ids(op, ids)
    sorted_ids, order = ids.flatten().sort(stable=True)
    rows = torch.arange(crow.shape[0], device=ids.device)
    starts = torch.searchsorted(sorted_ids, rows)
    sums = torch.segment_reduce(as_matrix(grad)[order], "sum", offsets=starts, axis=0, unsafe=True, initial=0)
    return csr_gather(sums, crow, col)


def write_pattern_(crow: Tensor, col: Tensor, into: Sequence[Tensor]) -> None:
    """Both layouts of a pattern into existing tensors: crow, col, ccol, row, perm."""
    into[0].copy_(crow)
    into[1].copy_(col)
    for target, source in zip(into[2:], csr_transpose(into[0], into[1], into[2].numel() - 1), strict=True):
        target.copy_(source)
