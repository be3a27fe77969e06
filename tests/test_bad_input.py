"""Bad input to an op is refused with a message that names the argument, what was expected and what came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern import CSR, ops
from sparsekern.ops.topk_project import topk_select

W = CSR.from_dense(torch.ones(5, 7), nnz=9)
X = torch.ones(3, 7)
G = torch.ones(3, 5)
IDS = torch.tensor([0, 4])


def linear_from(values: Tensor) -> Tensor:
    return ops.csr_linear(X, CSR(values, W.pattern))


def master_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return ops.csr_linear_dense_grad(X, torch.ones(shape, dtype=dtype), W.pattern)


BAD_INPUTS: list[tuple[str, Callable[[], Any], str]] = [
    ("linear-K", lambda: ops.csr_linear(G, W), "csr_linear: x must have 7 features"),
    ("linear-scalar", lambda: ops.csr_linear(torch.ones(()), W), "csr_linear: x must have at least one dim"),
    (
        "linear-half",
        lambda: ops.csr_linear(X.half(), W),
        "csr_linear: x must be float32, bfloat16 or float64 on the CPU",
    ),
    (
        "linear-dtypes",
        lambda: ops.csr_linear(X.double(), W),
        "csr_linear: values must have scalar type Double",
    ),
    ("linear-bias-length", lambda: ops.csr_linear(X, W, X[0]), "csr_linear: bias must be .* 5 elements"),
    (
        "linear-bias-dtype",
        lambda: ops.csr_linear(X, W, G[0].double()),
        "csr_linear: bias must have scalar type",
    ),
    ("linear-values-length", lambda: linear_from(torch.ones(8)), "csr_linear: values must be .* 9 elements"),
    (
        "linear-values-strides",
        lambda: linear_from(torch.ones(18)[::2]),
        "csr_linear: values must be a contig",
    ),
    (
        "dense-grad-K",
        lambda: ops.csr_linear_dense_grad(G, torch.ones(5, 7), W.pattern),
        "x must have 7 features",
    ),
    ("dense-grad-narrow", lambda: master_of(5, 2), r"csr_linear_dense_grad: master must have shape \(5, 7\)"),
    ("dense-grad-wide", lambda: master_of(5, 8), r"csr_linear_dense_grad: master must have shape \(5, 7\)"),
    ("dense-grad-rows", lambda: master_of(4, 7), r"csr_linear_dense_grad: master must have shape \(5, 7\)"),
    ("dense-grad-vector", lambda: master_of(35), r"csr_linear_dense_grad: master must have shape \(5, 7\)"),
    ("dense-grad-half", lambda: master_of(5, 7, dtype=torch.float16), "dense must be float32 or float64"),
    ("dense-grad-dtypes", lambda: master_of(5, 7, dtype=torch.float64), "values must have scalar type Float"),
    (
        "dense-grad-bias",
        lambda: ops.csr_linear_dense_grad(X, torch.ones(5, 7), W.pattern, X[0]),
        "bias must be .* 5 elements",
    ),
    ("sddmm-a", lambda: ops.csr_sddmm(X, X, W), "csr_sddmm: a must have 5 features"),
    ("sddmm-b", lambda: ops.csr_sddmm(G, G, W), "csr_sddmm: b must have 7 features"),
    ("sddmm-tokens", lambda: ops.csr_sddmm(G, X[:2], W), "csr_sddmm: a and b must have the same leading dim"),
    ("sddmm-lead", lambda: ops.csr_sddmm(G[None], X, W), "csr_sddmm: a and b must have the same leading dim"),
    (
        "sddmm-scalar",
        lambda: ops.csr_sddmm(G, torch.ones(()), W),
        "csr_sddmm: a and b must have at least one",
    ),
    (
        "sddmm-half",
        lambda: ops.csr_sddmm(G.half(), X.half(), W),
        "csr_sddmm: a must be float32, bfloat16 or float64 on the CPU",
    ),
    ("sddmm-dtypes", lambda: ops.csr_sddmm(G, X.double(), W), "csr_sddmm: a and b must have the same dtype"),
    (
        "embedding-high",
        lambda: ops.csr_embedding(IDS + 1, W),
        "csr_embedding: ids must be between 0 and 4, got 5",
    ),
    (
        "embedding-low",
        lambda: ops.csr_embedding(IDS - 1, W),
        "csr_embedding: ids must be between 0 and 4, got -1",
    ),
    ("embedding-ids", lambda: ops.csr_embedding(IDS.int(), W), "csr_embedding: ids must be int64"),
    (
        "embedding-half",
        lambda: ops.csr_embedding(IDS, W.to(dtype=torch.float16)),
        "csr_embedding: values must be float32 or float64",
    ),
    ("abs-topk-high", lambda: ops.abs_topk(X, 8), "abs_topk: k must be between 0 and .* 7, got 8"),
    ("abs-topk-low", lambda: ops.abs_topk(X, -1), "abs_topk: k must be between 0 and .* 7, got -1"),
    ("abs-topk-half", lambda: ops.abs_topk(X.half(), 1), "abs_topk: x must be float32, bfloat16 or float64 on the CPU"),
    ("abs-topk-scalar", lambda: ops.abs_topk(torch.ones(()), 1), "abs_topk: x must have at least one dim"),
    ("project-high", lambda: ops.topk_project_(X, 22), "topk_project_: k must be between 0 and 21, got 22"),
    ("project-low", lambda: ops.topk_project_(X, -1), "topk_project_: k must be between 0 and 21, got -1"),
    (
        "project-vector",
        lambda: ops.topk_project_(X[0], 1),
        r"topk_project_: weight must be a matrix, got .*\(7,\)",
    ),
    (
        "project-half",
        lambda: ops.topk_project_(X.half(), 1),
        "topk_project_: weight must be float32 or float64",
    ),
    ("project-axis", lambda: ops.topk_project_(X, 9, 1, 2), "topk_project_: axis must be 0 .* got 2"),
    ("project-no-axis", lambda: ops.topk_project_(X, 9, 1), "topk_project_: floor must be .* axis=None"),
    ("project-floor", lambda: ops.topk_project_(X, 9, -1, 0), "topk_project_: floor must be .* floor=-1"),
    (
        "project-rows",
        lambda: ops.topk_project_(X, 5, 2, 0),
        r"topk_project_: k must be at least floor \* 3 = 6",
    ),
    (
        "project-columns",
        lambda: ops.topk_project_(X, 13, 2, 1),
        r"topk_project_: k must be at least floor \* 7 = 14",
    ),
    ("select-high", lambda: topk_select(X, 22), "topk_select: k must be between 0 and 21, got 22"),
]


@pytest.mark.parametrize(("call", "message"), [pytest.param(*rest, id=name) for name, *rest in BAD_INPUTS])
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
