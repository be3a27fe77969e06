"""Scale and shift of the logits: a pruned model knows the answer, but not how sure to be.

Gao et al. 2025, appendix A.5.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .tasks import Pairs, task_loss

LBFGS_STEPS = 16
LARGEST = math.log(100)  # of a scale's logarithm: more would make an answer of differences that are mere rounding


@dataclass(frozen=True)
class Calibration:
    """logits * scale, with ``shift`` added to the logit of one token.

    Attributes:
        token: the second of the two candidates of a task, or None where they differ from pair to pair: no shift then.
    """

    scale: float = 1.0
    shift: float = 0.0
    token: int | None = None

    def logits(self, logits: Tensor) -> Tensor:
        """(..., vocab) -> (..., vocab)."""
        logits = logits * self.scale
        if self.token is None:
            return logits
        shift = torch.zeros(logits.shape[-1], dtype=logits.dtype, device=logits.device)
        shift[self.token] = self.shift
        return logits + shift

    def margins(self, margins: Tensor, pairs: Pairs) -> Tensor:
        """Those of the calibrated logits: (2N,) -> (2N,)."""
        return margins * self.scale + self.shift * _sides(pairs, self.token, margins)


UNCALIBRATED = Calibration()


def calibrate(margins: Tensor, pairs: Pairs) -> Calibration:
    """The scale and shift of least task loss, by 16 steps of LBFGS."""
    candidates = pairs.candidates
    token = None if candidates is None else candidates[1]
    margins = margins.detach().double()
    sides = _sides(pairs, token, margins)
    steepness, shift = (torch.zeros((), dtype=torch.float64, device=margins.device).requires_grad_() for _ in range(2))
    optimizer = torch.optim.LBFGS([steepness, shift], max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = task_loss(margins * _scale(steepness) + shift * sides)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    found = Calibration(_scale(steepness).item(), shift.item(), token)
    before, after = task_loss(margins), task_loss(found.margins(margins, pairs))
    return found if after <= before else Calibration(token=token)  # also where LBFGS ended in a NaN


def _scale(steepness: Tensor) -> Tensor:
    """Between 1/100 and 100; 1 at 0."""
    return (LARGEST * (steepness / LARGEST).tanh()).exp()


def _sides(pairs: Pairs, token: int | None, like: Tensor) -> Tensor:
    """1 where the shifted token is right, -1 where it is wrong; 0 where nothing is shifted."""
    if token is None:
        return torch.zeros_like(like)
    return (pairs.targets == token).to(like) * 2 - 1
