"""What autocast does to the ops and layers, on the CPU."""

from collections.abc import Callable

import pytest
import torch
from opcases import Draw
from torch import Tensor

import sparsekern as sk
from sparsekern import ops
from sparsekern.ops.dtypes import autocast_dtype

OF_FLOAT32: dict[str, Callable[[Tensor, sk.CSR], Tensor]] = {
    "csr_linear": lambda x, w: ops.csr_linear(x, w),
    "csr_sddmm": lambda x, w: ops.csr_sddmm(ops.csr_linear(x, w), x, w),  # of operands that autocast has to agree on
}


@pytest.mark.parametrize("name", OF_FLOAT32)
def test_activations_are_cast(name: str) -> None:
    draw, op = Draw(torch.float32), OF_FLOAT32[name]
    w, x = draw.csr(70, 257, 900), draw.normal(33, 257)
    expected = op(x.bfloat16(), w)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op(x, w), expected)


def test_float64_and_float16_are_left_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(torch.ones(1).double()) == torch.float64
    with torch.autocast("cpu", torch.float16):  # no kernels
        assert autocast_dtype(torch.ones(1)) == torch.float32


def test_devices_without_autocast() -> None:
    assert autocast_dtype(torch.ones(1, device="meta")) == torch.float32


@pytest.mark.parametrize("form", ["values", "master", "active"])
@pytest.mark.parametrize("density", [0.01, 0.9], ids=["sparse", "dense"])
def test_gradients_of_a_layer_are_float32(form: str, density: float) -> None:
    """Summed in float32 from bfloat16 activations, also where autocast is still on in the backward pass."""
    torch.manual_seed(0)
    layer = sk.nn.SparseLinear(70, 50, density=density)
    if form == "master":
        layer.weight.to_master_()
    if form == "active":
        layer.weight.to_active_()
    x = torch.randn(300, 70)

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        y = layer(x)
        return torch.autograd.grad(y, (layer.weight.parameter, layer.bias), torch.ones_like(y))

    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(x)
    narrow = gradients(x.bfloat16())  # without autocast
    exact = gradients(x.bfloat16().float())
    for a, n, e in zip(actual, narrow, exact, strict=True):
        assert a.dtype == n.dtype == torch.float32
        torch.testing.assert_close(a, n)
        if not (form == "master" and density == 0.9):  # torch's own product rounds its result
            torch.testing.assert_close(a, e)


def test_second_derivatives_in_autocast() -> None:
    x, gain = torch.randn(5, 8, requires_grad=True), torch.ones(8, requires_grad=True)

    def second(y: Tensor) -> Tensor:
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    with torch.autocast("cpu", torch.bfloat16):
        actual = second(ops.rms_norm(x, gain))
    torch.testing.assert_close(actual, second(ops.rms_norm(x, gain)), rtol=0.05, atol=0.05)
