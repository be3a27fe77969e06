"""Which implementation of the ops runs."""

import pytest
import torch

import sparsekern as sk
from sparsekern.ops.backend import CUDA_LIBRARY, install, overridden


def sevens(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full_like(x, 7), torch.zeros(len(x), 1, dtype=torch.uint8)


def test_an_implementation_lasts_as_long_as_its_block() -> None:
    x = torch.tensor([[1.0, -3, 2]])
    with overridden({"abs_topk": sevens}, "cpu"):
        assert sk.ops.abs_topk(x, 1).tolist() == [[7, 7, 7]]
        with pytest.raises(RuntimeError, match="csr_embedding: ids"):  # ops without another one run as before
            sk.ops.csr_embedding(torch.tensor([9]), sk.CSR.from_dense(torch.ones(2, 2), nnz=1))
    assert sk.ops.abs_topk(x, 1).tolist() == [[0, -3, 0]]


def test_the_last_one_installed_runs() -> None:
    x = torch.tensor([[1.0, -3, 2]])
    first = install({"abs_topk": sevens}, "cpu")
    with overridden({"abs_topk": lambda x, k: (x * 0, sevens(x, k)[1])}, "cpu"):
        assert sk.ops.abs_topk(x, 1).tolist() == [[0, 0, 0]]
    assert sk.ops.abs_topk(x, 1).tolist() == [[7, 7, 7]]
    first._destroy()
    assert sk.ops.abs_topk(x, 1).tolist() == [[0, -3, 0]]


def test_backends_have_names() -> None:
    assert sk.gpu_backend() in ("cuda", "triton", "none")
    with pytest.raises(ValueError, match='use_backend: name must be "cuda" or "triton", got \'cublas\''):
        sk.use_backend("cublas").__enter__()


def test_kernels_that_were_not_built_are_refused() -> None:
    if CUDA_LIBRARY.exists():
        with sk.use_backend("cuda"):
            assert sk.gpu_backend() == "cuda"
    else:
        with pytest.raises(ValueError, match="use_backend: the CUDA kernels were not built"):
            sk.use_backend("cuda").__enter__()
