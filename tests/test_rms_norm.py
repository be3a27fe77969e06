"""``rms_norm`` against torch's in float64, at every instruction set."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk
from sparsekern import ops
from sparsekern.ops.dtypes import value_dtype

SHAPES = [(3, 70), (2, 5, 64), (300, 33), (2100, 5), (7,), (1, 1), (0, 5), (3, 0)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, the gain, and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, shape[-1:], shape)
    x, gain, grad = (torch.randn(s, dtype=value_dtype(dtype), generator=generator) for s in shapes)
    return x.to(dtype), gain, grad.to(dtype)


def outcome(fn: Callable[..., Tensor], x: Tensor, gain: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), gain.detach().requires_grad_()]
    y = fn(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.bfloat16, 4e-3)],
    ids=["f32", "f64", "bf16"],
)
@every_shape
def test_result_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, isa: str) -> None:
    inputs = draw(shape, dtype)
    eps = torch.finfo(value_dtype(dtype)).eps
    expected = outcome(lambda x, g: F.rms_norm(x, g.shape, g, eps), *(t.double() for t in inputs))
    actual = outcome(ops.rms_norm, *inputs)
    assert [a.dtype for a in actual] == [dtype, dtype, value_dtype(dtype)]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance * (1 + len(inputs[0]) ** 0.5))


def test_eps_is_added_to_the_mean_square() -> None:
    x = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(ops.rms_norm(x, torch.ones(2), 12.5), x / 5)
    assert torch.equal(ops.rms_norm(0 * x, torch.ones(2)), 0 * x)


@every_shape
def test_autocast_rounds_the_result(shape: tuple[int, ...], isa: str) -> None:
    x, gain, grad = draw(shape, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, dx, dgain = outcome(ops.rms_norm, x, gain, grad.bfloat16())
        assert ops.rms_norm(x.double(), gain.double()).dtype == torch.float64
    expected = outcome(ops.rms_norm, x, gain, grad.bfloat16().float())
    assert torch.equal(y, expected[0].bfloat16())
    torch.testing.assert_close((dx, dgain), tuple(expected[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
def test_eps_is_torchs(dtype: torch.dtype) -> None:
    x = torch.full((2, 3), 1e-4, dtype=dtype)
    ours, theirs = sk.nn.RMSNorm(3), nn.RMSNorm(3)
    gain = torch.ones(3, dtype=value_dtype(dtype))
    ours.weight, theirs.weight = nn.Parameter(gain), nn.Parameter(gain.to(dtype))
    torch.testing.assert_close(ours(x), theirs(x))


def test_autocast_to_float16_is_not_for_the_cpu() -> None:
    with torch.autocast("cpu", torch.float16):
        assert ops.rms_norm(torch.ones(2, 3), torch.ones(3)).dtype == torch.float32


def test_derivatives() -> None:
    x, gain, _ = draw((3, 5), torch.float64)
    leaves = (x.requires_grad_(), gain.requires_grad_())
    assert torch.autograd.gradcheck(ops.rms_norm, leaves)
    assert torch.autograd.gradgradcheck(ops.rms_norm, leaves)


def test_threads_and_strides_do_not_matter(set_threads: Callable[[int], None]) -> None:
    x, gain, grad = draw((1000, 70), torch.float32)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(outcome(ops.rms_norm, x, gain, grad))
    results.append(outcome(ops.rms_norm, x.T.contiguous().T, gain, grad))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_layer_is_torchs() -> None:
    ours, theirs = sk.nn.RMSNorm(6, eps=0.1), nn.RMSNorm(6, eps=0.1)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("x", "gain", "eps", "message"),
    [
        (torch.ones(2, 3), torch.ones(4), 0.1, "gain must be a contiguous vector of 3 elements, got shape"),
        (torch.ones(2, 3), torch.ones(3).double(), 0.1, "gain must have"),
        (torch.ones(()), torch.ones(1), 0.1, "x must have at least one dimension"),
        (torch.ones(2, 3), torch.ones(3), -1.0, "eps must not be negative, got -1"),
        (torch.ones(2, 3).bfloat16(), torch.ones(3).bfloat16(), 0.1, "gain must have"),
        (torch.ones(2, 3).half(), torch.ones(3), 0.1, "x must be float32, bfloat16 or float64 on the CPU"),
    ],
)
def test_bad_input(x: Tensor, gain: Tensor, eps: float, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"rms_norm: {message}"):
        ops.rms_norm(x, gain, eps)
