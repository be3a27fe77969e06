"""Linear layers under a benchmark: forward, gradients, the layer, and what it costs to make a sparse weight.

Every contender reads row-major activations and writes row-major ones. Inputs are drawn anew for every case.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats import CSR
from ..nn import SparseLinear
from ..ops import reference
from .measure import (
    DENSE,
    DTYPES,
    Case,
    Problem,
    Work,
    assert_close,
    assert_written,
    implementations,
    sample,
)

TORCH_SPARSE = "torch.sparse"
DENSEST = {"cpu": 0.1, "cuda": 0.02}  # of torch.sparse: beyond, it takes longer than everything else together
DENSEST_ORIENTATION = 0.01  # of BSR, whose blocks all fill up, and of scipy, which has one thread
BLOCK = (4, 4)  # of BSR: the larger, the fuller


def random_csr(case: Case, device: torch.device) -> CSR:
    generator = torch.Generator(device)
    generator.seed()
    return CSR.random(case.n, case.k, density=case.density, generator=generator)


def activations(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """x (T, K), and a gradient (T, N)."""
    dtype = DTYPES[case.dtype]
    x, grad = (torch.randn(case.tokens, width, device=device, dtype=dtype) for width in (case.k, case.n))
    return x, grad


class Gradients:
    """Checks of some rows of y and dx, and of some entries of dw, against float64."""

    def __init__(self, x: Tensor, grad: Tensor, w: CSR) -> None:
        self.tokens, self.positions = sample(len(x), x.device), sample(w.nnz, x.device)
        self.row = reference.row_indices(w.pattern)[self.positions]
        self.col = w.col_indices[self.positions].long()
        dense = w.to_dense().double()
        self.y = x[self.tokens].double() @ dense.T
        self.dx = grad[self.tokens].double() @ dense
        self.dvalues = (grad[:, self.row].double() * x[:, self.col].double()).sum(0)

    def check_y(self, y: Tensor) -> None:
        assert_close(y[self.tokens], self.y)
        assert_written(y)

    def check_dx(self, dx: Tensor) -> None:
        assert_close(dx[self.tokens], self.dx)
        assert_written(dx)

    def check_dw(self, dw: Tensor) -> None:
        """Of a sparse weight (nnz), or of a dense one (N, K)."""
        assert_close(dw[self.positions] if dw.dim() == 1 else dw[self.row, self.col], self.dvalues)
        assert_written(dw)


# ---- the product


def build_linear(case: Case, device: torch.device, backward: bool) -> Problem:
    """x (T, K) -> y (T, N); with ``backward`` also the gradients of x and of the weight."""
    w = random_csr(case, device)
    x, out_grad = activations(case, device)
    grad = out_grad if backward else None
    e, t = x.element_size(), case.tokens
    moved = t * (2 * case.n + 3 * case.k) * e + 24 * w.nnz if backward else t * (case.n + case.k) * e + 8 * w.nnz

    contenders: dict[str, Callable[[], Any]] = {}
    for name, dtype in DTYPES.items():
        of_dtype = None if grad is None else grad.to(dtype)
        contenders[f"{DENSE} {name}"] = dense_linear(x.to(dtype), of_dtype, w.to_dense().to(dtype))
    contenders |= torch_sparse_linears(x.float(), None if grad is None else grad.float(), w)
    for name, ops in implementations(device).items():
        contenders[name] = our_linear(x, grad, w, ops)
    exact = Gradients(x, out_grad, w)

    def check(result: Any) -> None:
        y, *gradients = result if backward else (result,)
        exact.check_y(y)
        if gradients:
            exact.check_dx(gradients[0])
            exact.check_dw(gradients[1])

    work = Work(moved, (6 if backward else 2) * t * w.nnz)
    return Problem(contenders, check, baseline=TORCH_SPARSE, work=work)


def dense_linear(x: Tensor, grad: Tensor | None, w: Tensor) -> Callable[[], Any]:
    if grad is None:
        return lambda: F.linear(x, w)
    return lambda: (F.linear(x, w), grad @ w, grad.T @ x)


def by_matmul(x: Tensor, w: Tensor) -> Tensor:
    """The other spelling of ``F.linear``, for which torch calls MKL in another way."""
    return (w @ x.T).T.contiguous()


def torch_sparse_linears(x: Tensor, grad: Tensor | None, w: CSR) -> dict[str, Callable[[], Any]]:
    """torch's sparse formats, and scipy's, as far as they are worth the time."""
    found: dict[str, Callable[[], Any]] = {}
    if w.density > DENSEST[x.device.type]:
        return found
    found[f"{TORCH_SPARSE} CSR f32"] = torch_sparse_linear(F.linear, x, grad, w)
    if x.device.type == "cuda":
        return found
    found[f"{TORCH_SPARSE} CSR f32, (w @ x.T).T"] = torch_sparse_linear(by_matmul, x, grad, w)
    if w.density <= DENSEST_ORIENTATION and grad is None:
        found[f"{TORCH_SPARSE} BSR f32"] = partial(F.linear, x, w.to_dense().to_sparse_bsr(BLOCK))
        if importlib.util.find_spec("scipy"):
            found["scipy CSR f32"] = scipy_linear(x, w)
    return found


def torch_sparse_linear(
    product: Callable[[Tensor, Tensor], Tensor], x: Tensor, grad: Tensor | None, w: CSR
) -> Callable[[], Any]:
    forward = w.to_torch()
    if grad is None:
        return lambda: product(x, forward)
    transposed = w.transpose().to_torch()
    dvalues = torch_sparse_sddmm(x, grad, w)
    return lambda: (product(x, forward), product(grad, transposed), dvalues())


def torch_sparse_sddmm(x: Tensor, grad: Tensor, w: CSR) -> Callable[[], Tensor]:
    zeros = CSR(torch.zeros_like(w.values), w.pattern).to_torch()
    return lambda: torch.sparse.sampled_addmm(zeros, grad.T, x, beta=0).values()


def scipy_linear(x: Tensor, w: CSR) -> Callable[[], Tensor]:
    from scipy.sparse import csr_array

    parts = (w.values.numpy(), w.col_indices.numpy(), w.crow_indices.numpy())
    matrix, inputs = csr_array(parts, shape=w.shape), x.numpy().T
    return lambda: torch.from_numpy(matrix @ inputs).T.contiguous()


def our_linear(x: Tensor, grad: Tensor | None, w: CSR, ops: Mapping[str, Callable[..., Any]]) -> Callable[[], Any]:
    pattern = w.pattern.tensors
    if grad is None:
        return lambda: ops["csr_linear"](x, w.values, *pattern, None, False)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        y = ops["csr_linear"](x, w.values, *pattern, None, False)
        return y, *ops["csr_linear_backward"](grad, x, w.values, *pattern)

    return run


def build_sddmm(case: Case, device: torch.device) -> Problem:
    """The gradient of the weight alone: grad (T, N), x (T, K) -> (nnz); of a dense weight (N, K)."""
    w = random_csr(case, device)
    x, grad = activations(case, device)
    contenders: dict[str, Callable[[], Any]] = {}
    for name, dtype in DTYPES.items():
        contenders[f"{DENSE} {name}"] = partial(torch.mm, grad.to(dtype).T, x.to(dtype))
    if case.density <= DENSEST[device.type]:
        contenders[f"{TORCH_SPARSE} CSR f32"] = torch_sparse_sddmm(x.float(), grad.float(), w)
    for name, ops in implementations(device).items():
        contenders[name] = partial(ops["csr_sddmm"], grad, x, *w.pattern.tensors)
    moved = case.tokens * (case.n + case.k) * x.element_size() + 12 * w.nnz
    work = Work(moved, 2 * case.tokens * w.nnz)
    return Problem(contenders, Gradients(x, grad, w).check_dw, baseline=TORCH_SPARSE, work=work)


# ---- the layer


def build_layer(case: Case, device: torch.device) -> Problem:
    """A whole layer with a bias through autograd: forward and backward of ``SparseLinear`` and of ``nn.Linear``."""
    x, grad = activations(case, device)
    layer = SparseLinear(case.k, case.n, density=case.density, device=device)
    contenders: dict[str, Callable[[], Any]] = {}
    for name, dtype in DTYPES.items():
        linear = layer.to_linear().to(dtype)
        contenders[f"{DENSE} {name}"] = layer_step(linear, linear.weight, x.to(dtype), grad.to(dtype))
    (ours,) = list(implementations(device))[:1]
    contenders[ours] = layer_step(layer, layer.weight.parameter, x, grad)

    w = CSR(layer.weight.values.detach(), layer.weight.pattern)
    exact = Gradients(x, grad, w)
    assert layer.bias is not None
    exact.y += layer.bias.detach().double()
    dbias = grad.double().sum(0)

    def check(result: tuple[Tensor, ...]) -> None:
        y, dx, dw, db = result
        exact.check_y(y)
        exact.check_dx(dx)
        exact.check_dw(dw)
        assert_close(db, dbias)

    moved = case.tokens * (2 * case.n + 3 * case.k) * x.element_size() + 24 * w.nnz
    work = Work(moved, 6 * case.tokens * w.nnz)
    return Problem(contenders, check, baseline=DENSE, work=work)


def layer_step(
    layer: SparseLinear | nn.Linear, weight: Tensor, x: Tensor, grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    assert layer.bias is not None
    inputs = x.requires_grad_(), weight, layer.bias

    def run() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = layer(x)
            return y.detach(), *torch.autograd.grad(y, inputs, grad)

    return run


# ---- conversion


def build_conversion(case: Case, device: torch.device) -> Problem:
    """An (N, K) float32 matrix with zeros -> a sparse one: what comes before the first product.

    Ours has its transpose, too, which the gradient of the activations needs.
    """
    w = random_csr(case, device)
    dense = w.to_dense()

    def ours() -> tuple[Tensor, ...]:
        csr = CSR.from_dense(dense, nnz=w.nnz)
        return csr.crow_indices, csr.col_indices, csr.values

    contenders: dict[str, Callable[[], Any]] = {
        f"{TORCH_SPARSE} CSR": lambda: parts_of(dense.to_sparse_csr()),
        f"{TORCH_SPARSE} BSR": lambda: parts_of(dense.to_sparse_bsr(BLOCK)),
    }
    if device.type == "cpu" and importlib.util.find_spec("scipy"):
        contenders["scipy CSR"] = partial(scipy_conversion, dense)
    (name,) = list(implementations(device))[:1]
    contenders[name] = ours

    def check(result: tuple[Tensor, ...]) -> None:
        crow, col, values = result
        layout = torch.sparse_csr if values.dim() == 1 else torch.sparse_bsr
        made = torch.sparse_compressed_tensor(crow, col, values, w.shape, layout=layout)
        assert torch.equal(made.to_dense(), dense), "not the same matrix"

    return Problem(contenders, check, baseline=TORCH_SPARSE, work=Work(4 * dense.numel() + 8 * w.nnz))


def parts_of(w: Tensor) -> tuple[Tensor, ...]:
    """Of a torch.sparse CSR or BSR matrix."""
    return w.crow_indices(), w.col_indices(), w.values()


def scipy_conversion(dense: Tensor) -> tuple[Tensor, ...]:
    from scipy.sparse import csr_array

    matrix = csr_array(dense.numpy())
    return tuple(map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data)))
