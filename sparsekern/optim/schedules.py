"""Schedules as pure functions of the step: learning rate and density (Gao et al. 2025, appendix A.2)."""

import math
from dataclasses import dataclass
from itertools import pairwise


def warmup_decay(step: int, steps: int, warmup: float = 0.01) -> float:
    """Factor on the learning rate: from 0 to 1 over the first ``warmup`` of the steps, times a linear decay to 0."""
    rise = min(1.0, step / (warmup * steps)) if warmup > 0 else 1.0
    return rise * (1 - step / steps)


@dataclass(frozen=True)
class Anneal:
    """Density as a function of the step, from an initial one down to a target.

    Attributes:
        shape: "linear" (as published), "geometric" (a constant factor per step), or "fast": geometric to 10 times the
            target, at least to 10 %, over the first fifth of the window, and geometric from there.
        start, end: the window, as fractions of the run; at the initial density before it, at the target after it.
        initial: the density to begin with.
    """

    shape: str = "linear"
    start: float = 0.01
    end: float = 0.5
    initial: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "geometric", "fast"):
            raise ValueError(f"anneal shape must be linear, geometric or fast, got {self.shape!r}")
        if not 0 <= self.start < self.end < 1:
            raise ValueError(f"anneal needs 0 <= start < end < 1, got start={self.start}, end={self.end}")
        if not 0 < self.initial <= 1:
            raise ValueError(f"initial density must be in (0, 1], got {self.initial}")

    def density(self, step: int, steps: int, target: float) -> float:
        """The density at ``step`` of ``steps``."""
        t = min(1.0, max(0.0, (step / steps - self.start) / (self.end - self.start)))
        if t >= 1:
            return target  # exactly, which arithmetic would miss by a digit
        initial = max(self.initial, target)
        if self.shape == "linear":
            return initial + t * (target - initial)
        knots = [(0.0, initial), (1.0, target)]
        middle = max(0.1, 10 * target)
        if self.shape == "fast" and middle < initial:
            knots.insert(1, (0.2, middle))
        for (t0, d0), (t1, d1) in pairwise(knots):
            if t <= t1:
                return d0 * (d1 / d0) ** ((t - t0) / (t1 - t0))
        return target


def sharkfin(density: float, target: float) -> float:
    """Factor on the learning rate while the weights are denser than the target: 1 / sqrt(L0), 1 at the target."""
    return math.sqrt(target / density)
