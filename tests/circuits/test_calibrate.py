"""Scale and shift of the logits."""

import pytest
import torch
from scipy.optimize import minimize

from sparsekern.circuits import Calibration, Pairs, calibrate, task_loss


def pairs_of(n: int, fixed: bool = True) -> Pairs:
    first = torch.full((n,), 3) if fixed else torch.arange(n) % 5
    second = torch.full((n,), 7) if fixed else torch.arange(n) % 5 + 5
    return Pairs(
        torch.zeros(2 * n, 4, dtype=torch.int64),
        torch.full((2 * n,), 3),
        torch.cat([first, second]),
        torch.cat([second, first]),
    )


def test_calibration_is_the_best_there_is() -> None:
    pairs = pairs_of(100)
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(200, generator=generator) + 0.6
    margins = right * 0.1 + 0.05 * ((pairs.targets == 3) * 2 - 1)  # badly scaled, and leaning to the first answer
    found = calibrate(margins, pairs)
    sides = (pairs.targets == 7).double() * 2 - 1
    best = minimize(lambda p: task_loss(margins.double() * p[0] + p[1] * sides).item(), [1.0, 0.0])
    assert found.scale == pytest.approx(best.x[0], rel=0.02)
    assert found.shift == pytest.approx(best.x[1], abs=0.02)
    assert found.token == 7
    assert task_loss(found.margins(margins, pairs)).item() == pytest.approx(best.fun, abs=1e-4)


def test_margins_are_those_of_the_calibrated_logits() -> None:
    pairs, calibration = pairs_of(4), Calibration(2.5, 0.3, 7)
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))

    def margins_of(x: torch.Tensor) -> torch.Tensor:
        return (x.gather(1, pairs.targets[:, None]) - x.gather(1, pairs.others[:, None]))[:, 0]

    torch.testing.assert_close(calibration.margins(margins_of(logits), pairs), margins_of(calibration.logits(logits)))


def test_answers_that_differ_from_pair_to_pair_are_only_scaled() -> None:
    found = calibrate(torch.full((20,), 0.1), pairs_of(10, fixed=False))
    assert (found.shift, found.token) == (0.0, None)
    assert found.scale > 5


def test_a_scale_is_bounded() -> None:
    """Differences that are mere rounding do not become an answer."""
    found = calibrate(torch.full((20,), 1e-7), pairs_of(10))
    assert found.scale <= 100
    assert calibrate(torch.randn(20, generator=torch.Generator().manual_seed(1)) * 1e3, pairs_of(10)).scale >= 0.01
